"""SentencePiece models (Kudo and Richardson 2018), as T5, SigLIP and Gemma have them."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitvlm.core.config import ConfigError
from vitvlm.core.files import LARGEST_VOCABULARY, check_regular
from vitvlm.data.errors import DataError
from vitvlm.data.tokenizers.base import Model, Pieces

if TYPE_CHECKING:
    import sentencepiece


@dataclasses.dataclass(frozen=True)
class SentencePiece(Model):
    processor: "sentencepiece.SentencePieceProcessor"

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self.processor.encode(texts)

    def locate(self, text: str) -> Pieces:
        pieces = self.processor.encode(text, out_type="immutable_proto").pieces
        return Pieces([piece.id for piece in pieces], [(piece.begin, piece.end) for piece in pieces])

    def decode(self, ids: list[list[int]]) -> list[str]:
        try:
            return [self.processor.decode(row) for row in ids]
        except (UnicodeDecodeError, RuntimeError) as error:
            raise DataError(f"the SentencePiece model has a token that is no text: {error}") from error

    def id_of(self, token: str) -> int | None:
        found = self.processor.piece_to_id(token)
        return found if self.processor.id_to_piece(found) == token else None


def read(path: str) -> tuple[SentencePiece, dict[str, Any]]:
    """Returns the model and fields of its `Tokenizer`; the file does not say what to add, so EOS is, if there is one.

    Raises ConfigError for a spec without a path or where the package is not installed, DataError for the file.
    """
    if not path:
        raise ConfigError('tokenizer "sentencepiece": write sentencepiece:PATH, of a .model file')
    try:
        import sentencepiece
    except ImportError as error:
        raise ConfigError(
            "tokenizer \"sentencepiece\": sentencepiece is not installed; pip install 'vitvlm[sentencepiece]'"
        ) from error
    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such file; give a SentencePiece .model")
    try:
        check_regular(path, LARGEST_VOCABULARY)
        processor = sentencepiece.SentencePieceProcessor(model_file=path)
    except (RuntimeError, OSError, ValueError) as error:  # ValueError: it cannot say in UTF-8 what is wrong
        raise DataError(f"{path}: cannot be read as a SentencePiece model: {error}") from error
    ids = {"pad_id": processor.pad_id(), "bos_id": processor.bos_id(), "eos_id": processor.eos_id()}
    found = {name: i for name, i in ids.items() if i >= 0}
    return SentencePiece(processor), {"vocab_size": processor.vocab_size(), "add_eos": "eos_id" in found, **found}

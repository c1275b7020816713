"""BERT's WordPiece from a vocab.txt alone, as published before there was a tokenizer.json (Devlin et al. 2019)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitvlm.core import files
from vitvlm.data.errors import DataError

if TYPE_CHECKING:
    import tokenizers

VOCABULARY = "vocab.txt"
SPECIAL = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
LENGTH = 512  # where tokenizer_config.json does not say: BERT has positions for no more


def read(path: Path, config: Mapping[str, Any]) -> "tokenizers.Tokenizer":
    """The tokenizer of a vocabulary with one piece per line, whose number is its id.

    Args:
      config: tokenizer_config.json: do_lower_case (true if it does not say), tokenize_chinese_chars, strip_accents (as
        do_lower_case), and the special tokens by name.

    Raises DataError for a file that is no such vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    try:
        pieces = files.read_text(path, files.LARGEST_VOCABULARY).split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    pieces = [piece.removesuffix("\r") for piece in pieces]
    vocabulary = {piece: number for number, piece in enumerate(pieces if pieces[-1] else pieces[:-1])}
    special = {name: config.get(f"{name}_token", token) for name, token in SPECIAL.items()}
    if missing := [special[name] for name in ("unk", "cls", "sep", "pad") if special[name] not in vocabulary]:
        raise DataError(f"{path}: not a vocabulary of BERT: it lacks the line {', '.join(missing)}")
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"]))
    fast.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece(prefix="##")
    fast.add_special_tokens([token for token in special.values() if token in vocabulary])
    first, last = special["cls"], special["sep"]
    fast.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(token, vocabulary[token]) for token in (first, last)],
    )
    return fast


def defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what tokenizer_config.json may leave out: the length, at most BERT's 512, and the padding token."""
    length = min(config.get("model_max_length", LENGTH), LENGTH)
    return {"model_max_length": length, "pad_token": config.get("pad_token", SPECIAL["pad"])}

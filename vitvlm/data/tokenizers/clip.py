"""CLIP's byte-level BPE (Radford et al. 2021), token for token that of OpenAI and open_clip.

Words are cut by the package `regex`, as theirs are, not by the one inside `tokenizers`, whose Unicode tables are older:
newer letters would be cut as punctuation.
"""

import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitvlm.core import files, json_texts
from vitvlm.data.errors import DataError
from vitvlm.data.tokenizers.base import Model

if TYPE_CHECKING:
    import tokenizers

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2
SPECIALS = ("<start_of_text>", "<end_of_text>")
WORDS = "|".join(SPECIALS) + r"""|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
END = "</w>"


@dataclasses.dataclass(frozen=True)
class ClipBpe(Model):
    """Words by CLIP's pattern, each cut by BPE; a special token that is spelt out in a text is that token."""

    bpe: "tokenizers.Tokenizer"

    def encode(self, texts: list[str]) -> list[list[int]]:
        words = [_pattern().findall(text) for text in texts]
        return [encoding.ids for encoding in self.bpe.encode_batch_fast(words, is_pretokenized=True)]

    def decode(self, ids: list[list[int]]) -> list[str]:
        return [text.removesuffix(" ") for text in self.bpe.decode_batch(ids)]

    def id_of(self, token: str) -> int | None:
        return self.bpe.token_to_id(token)


def read(path: str) -> tuple[ClipBpe, dict[str, Any]]:
    """The model and the fields of its `Tokenizer`; `path` as in the spec "clip:PATH", "" for open_clip's own."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    merges = read_merges(Path(path) if path else _installed())
    characters = _byte_characters()
    names = [*characters, *(c + END for c in characters), *(first + second for first, second in merges), *SPECIALS]
    vocabulary = {name: i for i, name in enumerate(names)}
    bpe = tokenizers.Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix=END))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(END, " ")])
    bpe.add_special_tokens(list(SPECIALS))
    start, end = (vocabulary[name] for name in SPECIALS)
    return ClipBpe(bpe), {
        "vocab_size": len(names),
        "length": 77,
        "pad_id": 0,
        "bos_id": start,
        "eos_id": end,
        "add_bos": True,
        "add_eos": True,
        "cleaning": "clip",
        "lower_case": True,
    }


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The 48,894 merges, in order, from CLIP's own file or a Hugging Face CLIP's merges.txt or tokenizer.json.

    Raises DataError if the file is not there or is not CLIP's.
    """
    if path.is_dir():
        there = [path / name for name in (VOCABULARY, "merges.txt", "tokenizer.json") if (path / name).is_file()]
        if not there:
            raise DataError(f"{path}: no CLIP vocabulary: neither {VOCABULARY} nor merges.txt nor tokenizer.json")
        path = there[0]
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file; a CLIP vocabulary is {VOCABULARY}, merges.txt or tokenizer.json"
        )
    try:
        content = files.read_bytes(path, files.LARGEST_VOCABULARY)
        text = (files.gunzip(content, files.LARGEST_VOCABULARY) if path.suffix == ".gz" else content).decode()
        lines = (
            json_texts.loads(text)["model"]["merges"] if path.suffix == ".json" else text.split("\n")[1 : MERGES + 1]
        )
        merges = [tuple(line.split() if isinstance(line, str) else line) for line in lines]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as a CLIP vocabulary: {error}") from error
    if len(merges) != MERGES or any(len(merge) != 2 for merge in merges):
        raise DataError(
            f"{path}: not CLIP's vocabulary, which has {MERGES} merges of two; this has {len(merges)} lines"
        )
    return merges


def _installed() -> Path:
    """The vocabulary inside an installed open_clip, found without importing it (it would bring PyTorch)."""
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / VOCABULARY).is_file():
            return path
    raise DataError(
        'tokenizer "clip": its vocabulary is in the package open_clip, which is not installed: '
        f"pip install --no-deps open-clip-torch, or write clip:PATH of {VOCABULARY}"
    )


def _byte_characters() -> list[str]:
    """A printable character for each byte, in the order of CLIP's vocabulary: bytes that are printable come first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


@functools.cache
def _pattern() -> Any:
    import regex

    return regex.compile(WORDS, regex.IGNORECASE)

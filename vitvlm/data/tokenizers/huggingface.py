"""Hugging Face's fast tokenizers, as their own library `tokenizers` reads them; BPE, WordPiece and Unigram alike.

A folder of BERT's that has no tokenizer.json is read from its vocab.txt."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitvlm.core import files, json_texts
from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError
from vitvlm.data.tokenizers import wordpiece
from vitvlm.data.tokenizers.base import Model, Pieces

if TYPE_CHECKING:
    import tokenizers

LONGEST = 1_000_000
"""A longer `model_max_length` is transformers' way to say that there is none."""

LARGEST = 10_000_000
"""Tokens of a vocabulary; the largest published ones have a quarter of a million."""

OTHER_FILES = {"merges.txt": "clip", "spiece.model": "sentencepiece", "tokenizer.model": "sentencepiece"}


@dataclasses.dataclass(frozen=True)
class FastTokenizer(Model):
    """A tokenizer.json without the special tokens, truncation and padding that it would add."""

    fast: "tokenizers.Tokenizer"

    def encode(self, texts: list[str]) -> list[list[int]]:
        with _told():
            return [encoding.ids for encoding in self.fast.encode_batch_fast(texts, add_special_tokens=False)]

    def locate(self, text: str) -> Pieces:
        with _told():
            encoding = self.fast.encode(text, add_special_tokens=False)
        return Pieces(encoding.ids, encoding.offsets)

    def decode(self, ids: list[list[int]]) -> list[str]:
        with _told():
            return self.fast.decode_batch(ids, skip_special_tokens=True)

    def id_of(self, token: str) -> int | None:
        return self.fast.token_to_id(token)

    def with_tokens(self, tokens: Sequence[str]) -> "FastTokenizer":
        import tokenizers

        fast = tokenizers.Tokenizer.from_str(self.fast.to_str())
        fast.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in tokens])
        return FastTokenizer(fast)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns what the library raises, such as for a text that its vocabulary has no token for, into a DataError."""
    try:
        yield
    except Exception as error:  # the library raises nothing narrower
        if type(error) is not Exception:
            raise
        raise DataError(f"the tokenizer cannot do this: {error}") from error


def read(path: str) -> tuple[FastTokenizer, dict[str, Any]]:
    """The model and the fields of its `Tokenizer` that the files give.

    BOS and EOS are what its template adds ([CLS] and [SEP] for BERT), or else the tokens of these names.

    Raises:
      ConfigError: for a spec without a path, or a template that adds more than one token at either end.
      DataError: for files that are not there or cannot be read.
    """
    if not path:
        raise ConfigError('tokenizer "hf": write hf:PATH, of a folder or its tokenizer.json')
    file = _tokenizer_file(Path(path))
    config = _read_config(file.parent) if file.name in ("tokenizer.json", wordpiece.VOCABULARY) else {}
    if file.name == wordpiece.VOCABULARY:
        fast = wordpiece.read(file, config)
        config = {**config, **wordpiece.defaults(config)}
    else:
        fast = _read_fast(file)
    given_padding, given_truncation = fast.padding or {}, fast.truncation or {}
    fast.no_padding()
    fast.no_truncation()

    before, after = _added(fast, file)
    fast.post_processor = None  # adds what a `Tokenizer` adds, and takes white space from where tokens lie
    ids = _special_ids(fast, config, file)
    bos_id = before[0] if before else ids.get("bos", ids.get("cls"))
    eos_id = after[0] if after else ids.get("eos", ids.get("sep"))
    add_bos, add_eos = bool(before), bool(after)
    if "add_bos_token" in config or "add_eos_token" in config:  # these replace the template
        add_bos, add_eos = (bool(config.get(name)) for name in ("add_bos_token", "add_eos_token"))
        bos_id, eos_id = ids.get("bos", bos_id), ids.get("eos", eos_id)
    found = {
        "vocab_size": _vocab_size(fast, file),
        "length": _length(config, given_truncation, given_padding),
        "pad_id": ids.get("pad", given_padding.get("pad_id")),
        "bos_id": bos_id,
        "eos_id": eos_id,
        "add_bos": add_bos,
        "add_eos": add_eos,
        "truncation": config.get("truncation_side", given_truncation.get("direction")),
        "padding": config.get("padding_side", given_padding.get("direction")),
    }
    return FastTokenizer(fast), {name: value for name, value in found.items() if value is not None}


def _vocab_size(fast: "tokenizers.Tokenizer", file: Path) -> int:
    size = max(fast.get_vocab().values(), default=-1) + 1
    if not 0 < size <= LARGEST:
        raise DataError(f"{file}: its ids go up to {size - 1:,}" if size else f"{file}: its vocabulary is empty")
    return size


def _special_ids(fast: "tokenizers.Tokenizer", config: dict[str, Any], file: Path) -> dict[str, int]:
    """Ids of the special tokens that the config names. Raises DataError for one that is not in the vocabulary."""
    found = {}
    for name in _NAMES:
        if (token := config.get(f"{name}_token")) is not None:
            if (number := fast.token_to_id(token)) is None:
                raise DataError(f"{file.parent}: {name}_token is {token!r}, which the vocabulary does not have")
            found[name] = number
    return found


_NAMES = ("bos", "eos", "pad", "cls", "sep")
TOKENS = tuple(f"{name}_token" for name in (*_NAMES, "unk", "mask"))
SWITCHES = ("add_bos_token", "add_eos_token", "do_lower_case", "strip_accents", "tokenize_chinese_chars")
KINDS = {  # of the fields of tokenizer_config.json that are read
    "model_max_length": (int, float),
    **dict.fromkeys(("truncation_side", "padding_side"), (str,)),
    **dict.fromkeys(SWITCHES, (bool,)),
}


def _tokenizer_file(path: Path) -> Path:
    file = path / "tokenizer.json" if path.is_dir() else path
    for each in (file, path / wordpiece.VOCABULARY):
        if each.is_file():
            return each
    for name, kind in OTHER_FILES.items():
        if (path / name).is_file():
            place = path if kind == "clip" else path / name
            raise DataError(f"{path}: no tokenizer.json; its {name} may be meant: {kind}:{place}")
    raise DataError(
        f"{file}: there is no such file; give it, or a folder with a tokenizer.json or a {wordpiece.VOCABULARY} (BERT)"
    )


def _read_fast(file: Path) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        files.check_regular(file, files.LARGEST_VOCABULARY)
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{file}: cannot be read as a Hugging Face tokenizer: {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    """special_tokens_map.json and tokenizer_config.json, the latter first; tokens as plain strings, nulls left out."""
    fields = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            try:
                fields |= json_texts.loads(files.read_text(folder / name, files.LARGEST_VOCABULARY))
            except (OSError, ValueError, TypeError) as error:
                raise DataError(f"{folder / name}: is not a JSON object: {error}") from error
    plain = {key: value["content"] if _is_token(value) else value for key, value in fields.items()}
    found = {key: value for key, value in plain.items() if value is not None}
    for key, value in found.items():
        kinds = KINDS.get(key, (str,) if key in TOKENS else (object,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
            told = " or ".join(kind.__name__ for kind in kinds)
            raise DataError(f"{folder}: {key} of its tokenizer's config is {value!r:.60}, not {told}")
    return found


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and "content" in value


def _added(fast: "tokenizers.Tokenizer", file: Path) -> tuple[list[int], list[int]]:
    """Returns the tokens that the template adds before and after a text: at most one each."""
    if fast.num_special_tokens_to_add(is_pair=False) == 0:
        return [], []
    specials = {token.content for token in fast.get_added_tokens_decoder().values()}
    for word in fast.get_vocab().keys() - specials:
        try:
            encoding = fast.encode(word)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{file}: cannot encode {word!r:.60}: {error}") from error
        if 0 in encoding.special_tokens_mask:
            first = encoding.special_tokens_mask.index(0)
            last = len(encoding) - encoding.special_tokens_mask[::-1].index(0)
            before, after = encoding.ids[:first], encoding.ids[last:]
            break
    else:
        raise DataError(f"{file}: none of its tokens can be encoded")
    if len(before) > 1 or len(after) > 1:
        tokens = [fast.id_to_token(i) for i in before + after]
        raise ConfigError(f"{file}: adds {', '.join(tokens)} to a text; only one token at either end is supported")
    return before, after


def _length(config: dict[str, Any], truncation: dict[str, Any], padding: dict[str, Any]) -> int | None:
    for length in (config.get("model_max_length"), truncation.get("max_length"), padding.get("length")):
        if length is not None and length < LONGEST:
            return int(length)
    return None

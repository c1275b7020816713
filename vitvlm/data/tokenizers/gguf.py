"""Tokenizers inside GGUF files, llama.cpp's format: byte-level BPE ("gpt2") and SentencePiece's BPE ("llama").

The file holds the vocabulary and names the rules around it; these are built of Hugging Face's `tokenizers`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitvlm.core import gguf
from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError
from vitvlm.data.tokenizers.huggingface import FastTokenizer

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens
SPACE = "▁"  # SentencePiece's
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA3 = rf"{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{WORDS}|\p{{N}}|{REST}"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2, DIGITS = "", "digits"  # GPT-2's own pattern, which `tokenizers` has; the same after each digit is cut out

# How a text is cut into words before BPE, by the name that tokenizer.ggml.pre gives it.
PATTERNS = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "jais", "gigachat", "mpt"), GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "dbrx", "smaug-bpe"), LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), QWEN2),
    "tekken": TEKKEN,
}
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken")  # in the vocabulary need no merges
BEGIN_WITH_BOS = ("llama-bpe", "llama3", "llama-v3", "falcon3")  # where the file does not say
COMPOSED = ("qwen2", "deepseek-r1-qwen")  # normalised to NFC first


def read(path: str) -> tuple[FastTokenizer, dict[str, Any]]:
    """The model and the fields of its `Tokenizer` that the file gives.

    Raises:
      ConfigError: for a spec without a path.
      DataError: for a file that is not there, damaged, or whose tokenizer is of a kind that is not read.
    """
    if not path:
        raise ConfigError('tokenizer "gguf": write gguf:PATH, of a GGUF file')
    header = header_of(path)
    kind, tokens = header.metadata.get("tokenizer.ggml.model"), _texts(header, "tokenizer.ggml.tokens")
    if kind not in MODELS:
        raise DataError(f"{path}: a tokenizer of the kind {kind!r}; there is: {', '.join(MODELS)}")
    fast = MODELS[kind](header, tokens)
    ids = special_ids(header)
    begin = kind == "llama" or header.metadata.get("tokenizer.ggml.pre") in BEGIN_WITH_BOS
    found = {
        "vocab_size": len(tokens),
        "length": header.metadata.get(f"{header.metadata.get('general.architecture')}.context_length"),
        "pad_id": ids.get("pad", ids.get("eos")),
        "bos_id": ids.get("bos"),
        "eos_id": ids.get("eos"),
        "add_bos": bool(header.metadata.get("tokenizer.ggml.add_bos_token", begin)),
        "add_eos": bool(header.metadata.get("tokenizer.ggml.add_eos_token", False)),
    }
    return FastTokenizer(fast), {name: value for name, value in found.items() if value is not None}


def write(path: Path, folder: Path) -> None:
    """Writes the tokenizer of a file as a Hugging Face folder has it, with its chat template.

    Raises DataError as `read`.
    """
    from tokenizers import processors

    (model, rules), header = read(str(path)), header_of(path)
    tokens, ids = _texts(header, "tokenizer.ggml.tokens"), special_ids(header)
    before, after = ([tokens[rules[f"{name}_id"]]] * rules[f"add_{name}"] for name in ("bos", "eos"))
    if before or after:
        added = [(token, tokens.index(token)) for token in {*before, *after}]
        model.fast.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], pair=[*before, "$A", *after, *before, "$B", *after], special_tokens=added
        )
    model.fast.save(str(folder / "tokenizer.json"))
    config = {f"{name}_token": tokens[i] for name, i in ids.items()} | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {"clean_up_tokenization_spaces": False, "model_max_length": rules.get("length")}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    if (template := header.metadata.get("tokenizer.chat_template")) is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def header_of(path: str | Path) -> gguf.Header:
    """The header of a file. Raises DataError if it cannot be read."""
    try:
        return gguf.read(Path(path))
    except gguf.GGUFError as error:
        raise DataError(str(error)) from None


def special_ids(header: gguf.Header) -> dict[str, int]:
    """Ids of BOS, EOS, UNK and PAD, as far as there are such.

    Raises DataError for one that is not in the vocabulary.
    """
    count = len(_texts(header, "tokenizer.ggml.tokens"))
    found = {}
    for name, key in SPECIAL.items():
        if (value := header.metadata.get(f"tokenizer.ggml.{key}")) is not None:
            if not isinstance(value, int) or not 0 <= value < count:
                raise DataError(f"{header.path}: tokenizer.ggml.{key} is {value!r}; ids are 0 to {count - 1}")
            found[name] = value
    return found


def _texts(header: gguf.Header, key: str) -> Sequence[str]:
    try:
        return gguf.texts(header, key)
    except gguf.GGUFError as error:
        raise DataError(str(error)) from None


def _per_token(header: gguf.Header, key: str, count: int) -> np.ndarray:
    values = header.metadata.get(key)
    if not isinstance(values, np.ndarray) or len(values) != count:
        found = len(values) if isinstance(values, np.ndarray | list) else "no"
        raise DataError(f"{header.path}: {key} has {found} values for {count} tokens")
    return values


def _added(header: gguf.Header, tokens: Sequence[str]) -> "list[tokenizers.AddedToken]":
    """Tokens that are found in a text before anything else: special ones, and those that a user defined."""
    from tokenizers import AddedToken

    types = _per_token(header, "tokenizer.ggml.token_type", len(tokens))
    return [
        AddedToken(tokens[i], special=bool(types[i] == CONTROL), normalized=False)
        for i in np.flatnonzero((types == CONTROL) | (types == USER_DEFINED)).tolist()
    ]


def byte_level(header: gguf.Header, tokens: Sequence[str]) -> "tokenizers.Tokenizer":
    """BPE of bytes, as GPT-2, LLaMA 3, Qwen and SmolLM have it, with the merges that the file lists.

    Raises DataError if it has none, or cuts words in a way that is not known.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = header.metadata.get("tokenizer.ggml.pre")
    if name not in PATTERNS:
        what = "no tokenizer.ggml.pre, so how it cuts words is not known" if name is None else f"words cut as {name!r}"
        raise DataError(
            f"{header.path}: {what}; there is: {', '.join(PATTERNS)}. Give the tokenizer of the original, hf:FOLDER"
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in _texts(header, "tokenizer.ggml.merges")]
    _check_merges(header, merges, vocabulary)
    fast = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name in WHOLE_WORDS))
    if name in COMPOSED:
        fast.normalizer = normalizers.NFC()
    if PATTERNS[name] in (GPT2, DIGITS):
        words = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        words = [pre_tokenizers.Digits(individual_digits=True), *words] if PATTERNS[name] == DIGITS else words
    else:
        words = [
            pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    fast.pre_tokenizer = pre_tokenizers.Sequence(words)
    fast.decoder = decoders.ByteLevel()
    fast.add_tokens(_added(header, tokens))
    return fast


def _check_merges(header: gguf.Header, merges: Sequence[tuple[str, ...]], vocabulary: Mapping[str, int]) -> None:
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            raise DataError(f"{header.path}: damaged: merges {' '.join(merge)!r}, which its vocabulary does not have")


def sentence_piece(header: gguf.Header, tokens: Sequence[str]) -> "tokenizers.Tokenizer":
    """SentencePiece's BPE, as LLaMA 1 and 2, Mistral and Gemma have it: pieces with scores, and bytes for the rest.

    Of two neighbours those are joined whose piece has the highest score. Pieces for control, bytes and what is not
    known take no part.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    types = _per_token(header, "tokenizer.ggml.token_type", len(tokens))
    scores = _per_token(header, "tokenizer.ggml.scores", len(tokens))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    joined = [i for i in np.flatnonzero((types == NORMAL) | (types == UNUSED)).tolist() if vocabulary[tokens[i]] == i]
    merges = list(_merges([tokens[i] for i in sorted(joined, key=lambda i: -scores[i])]))
    unknown = special_ids(header).get("unk")
    fast = Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=bool((types == BYTE).any()),
        )
    )
    prefix = bool(header.metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", SPACE)
    fast.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    fast.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    fast.add_tokens(_added(header, tokens))
    return fast


def _merges(pieces: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the two parts of each piece, in every way to cut it in two pieces; `pieces` by falling score."""
    known = set(pieces)
    for piece in pieces:
        for cut in range(1, len(piece)):
            if piece[:cut] in known and piece[cut:] in known:
                yield piece[:cut], piece[cut:]


MODELS = {"gpt2": byte_level, "llama": sentence_piece}

"""Readers of tokenizer files in a Hugging Face folder: they return the arguments of `data.tokenizers.open`."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitvlm.data import tokenizers
from vitvlm.data.tokenizers import gguf as gguf_tokenizers

Rules = Mapping[str, Any]

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
QFORMER = "qformer_tokenizer"  # folder of the tokenizer by which InstructBLIP's Q-Former reads prompts
CLIP_VOCABULARY = 49408


def fast(folder: Path, length: int, vocab_size: int) -> Rules | None:
    """Arguments for a tokenizer.json, which holds its own rules; texts fill the model's positions."""
    return {"tokenizer": f"hf:{folder}", "length": length} if (folder / "tokenizer.json").is_file() else None


def bert(folder: Path, length: int, vocab_size: int) -> Rules | None:
    """WordPiece, of a tokenizer.json or a vocab.txt alone."""
    known = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    return {"tokenizer": f"hf:{folder}", "length": length} if known else None


def clip(folder: Path, length: int, vocab_size: int) -> Rules | None:
    """CLIP's BPE by its own rules, which `transformers` only come near to; another vocabulary as it says itself."""
    known = (folder / "merges.txt").is_file() or (folder / "tokenizer.json").is_file()
    if vocab_size == CLIP_VOCABULARY and known:
        return {"tokenizer": f"clip:{folder}", "length": length}
    return fast(folder, length, vocab_size)


def open_clip(folder: Path, length: int, vocab_size: int) -> Rules | None:
    """CLIP's BPE, which open_clip's folders need not hold."""
    return clip(folder, length, vocab_size) or (
        {"tokenizer": "clip", "length": length} if vocab_size == CLIP_VOCABULARY else None
    )


def align(folder: Path, length: int, vocab_size: int) -> Rules | None:
    """BERT's, of texts of 64 tokens, which ALIGN was trained with; BERT has positions for more."""
    return bert(folder, min(length, 64), vocab_size)


def t5(folder: Path, length: int, vocab_size: int) -> Rules | None:
    """Arguments for T5's tokenizer.json, or else its SentencePiece, which lacks the sentinels (<extra_id_0>, …)."""
    if (found := fast(folder, length, vocab_size)) is not None:
        return found
    if not (folder / "spiece.model").is_file():
        return None
    return {
        "tokenizer": f"sentencepiece:{folder / 'spiece.model'}",
        "length": length,
        "add_bos": False,
        "add_eos": True,
    }


def siglip(folder: Path, length: int, vocab_size: int) -> Rules | None:
    """SigLIP's SentencePiece, or SigLIP 2's, which is Gemma's.

    Both models were trained on lower-case texts padded on the right, and look at the padding.
    """
    rules = {"length": length, "padding": "right", "add_bos": False, "add_eos": True, "mask_padding": False}
    if (folder / "spiece.model").is_file():
        own = {"tokenizer": f"sentencepiece:{folder / 'spiece.model'}", "cleaning": "canonicalize", "pad_id": 1}
        return own | rules
    if (found := fast(folder, length, vocab_size)) is None:
        return None
    return {**found, **rules, "lower_case": True}


Reader = Callable[[Path, int, int], Rules | None]


def copy_files(rules: Rules, folder: Path) -> None:
    """The files of the tokenizer that these rules open, if they are a Hugging Face folder's, into another folder.

    Of a tokenizer inside a GGUF file such files are written.
    """
    if (place := tokenizers.place(rules["tokenizer"])) is None:
        return
    if rules["tokenizer"].startswith("gguf:"):
        gguf_tokenizers.write(place, folder)
        return
    source = place if place.is_dir() else place.parent
    if source.resolve() == folder.resolve():
        return
    for name in FILES:
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    if (source / QFORMER).is_dir():
        shutil.copytree(source / QFORMER, folder / QFORMER, dirs_exist_ok=True)

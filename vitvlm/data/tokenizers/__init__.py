"""Texts to ids of one length and back, by a spec: "clip", "hf:PATH", "gguf:PATH" …; and training one's own.

tokenizer = tokenizers.open("clip")
tokens = tokenizer.encode(["a cat", "two dogs"])  # ids [B, L], mask [B, L]
tokenizer.decode(tokens.ids)
"""

from pathlib import Path
from typing import Any

from vitvlm.core.config import ConfigError, check_names, suggest
from vitvlm.data.tokenizers import clip, gguf, huggingface, piece
from vitvlm.data.tokenizers.base import RULES, Pieces, Tokenizer, Tokens
from vitvlm.data.tokenizers.training import train

__all__ = ["Pieces", "Tokenizer", "Tokens", "open", "place", "train"]

# Of all texts of the embedded set, an emoji's keywords joined by "|": python scripts/train_tokenizer.py
# --source=emoji --fields=name,keywords,name_ja,keywords_ja --vocab_size=2000 --length=32 --lower_case --target=THIS
_EMOJI = Path(__file__).parents[1] / "emoji" / "tokenizer.json"

_READERS = {
    "clip": clip.read,
    "gguf": gguf.read,
    "emoji": lambda _: huggingface.read(str(_EMOJI)),
    "hf": huggingface.read,
    "sentencepiece": piece.read,
}


def open(spec: str, length: int | None = None, added: str = "", **rules: Any) -> Tokenizer:
    """Opens a tokenizer. A special token that is spelt out in a text is that token, except with SentencePiece.

    Args:
      spec: what it is and where:
        "clip"                CLIP's BPE, 77 tokens padded with 0, from the vocabulary in an installed `open_clip`;
        "clip:PATH"           the same from bpe_simple_vocab_16e6.txt.gz, or from the merges.txt or tokenizer.json of
                              a Hugging Face CLIP (the file or its folder);
        "emoji"               a small one of the emoji set's names and keywords, English and Japanese: 32 tokens;
        "hf:PATH"             a Hugging Face fast tokenizer, as a folder or its tokenizer.json; what `train` writes;
        "gguf:PATH"           the tokenizer inside a GGUF file, byte-level BPE or SentencePiece's BPE;
        "sentencepiece:PATH"  a SentencePiece .model; adds EOS and no BOS, unless told otherwise.
      length: L, tokens of each text with BOS and EOS; default: what the files say.
      added: special tokens, with spaces between, that the vocabulary is to have: "<image> <row_1_col_1>". Those that it
        lacks come behind it, in this order, and a model needs rows for them.
      **rules: any other field of `Tokenizer` but its vocabulary, instead of what the files say: pad_id, bos_id, eos_id,
        add_bos, add_eos, truncation, padding, cleaning, lower_case, mask_padding.

    Raises:
      ConfigError: for a spec or rule that cannot be meant, where the files give no length or padding id, or for tokens
        that are to be added to a kind that takes none.
      DataError: for files that are not there or cannot be used.
    """
    kind, _, path = str(spec).partition(":")
    if kind not in _READERS:
        raise ConfigError(f"tokenizer {spec!r}: no such kind {kind!r}; {suggest(kind, _READERS)}")
    check_names(rules, [*RULES, "added"], "tokenizer")
    model, fields = _READERS[kind](path)
    if added:
        model = model.with_tokens(added.split())
        fields["vocab_size"] = max(fields["vocab_size"], *(model.id_of(token) + 1 for token in added.split()))
    fields |= rules if length is None else rules | {"length": length}
    for name in ("length", "pad_id"):
        if name not in fields:
            raise ConfigError(f"tokenizer {spec!r}: its files give no {name}; give {name}=")
    return Tokenizer(model, **fields)


def place(spec: str) -> Path | None:
    """The file or folder that a spec reads; None for "clip", whose vocabulary is in another package."""
    kind, _, path = spec.partition(":")
    if kind == "emoji":
        return _EMOJI
    return Path(path) if path else None

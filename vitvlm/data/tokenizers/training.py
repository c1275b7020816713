"""One's own vocabulary, from one's own captions."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SPECIALS = (PAD, BOS, EOS)


def train(
    texts: Iterable[str],
    vocab_size: int,
    path: str | Path,
    length: int | None = None,
    lower_case: bool = False,
    min_frequency: int = 2,
) -> int:
    """Trains a byte-level BPE and writes it as a tokenizer.json, which "hf:PATH" and `transformers` read.

    Any text can be encoded and comes back as it was: in lower case, if so told, and without special tokens spelt out.
    Texts get BOS and EOS; ids 0, 1 and 2 are <pad>, <bos> and <eos>. The same texts give the same file.

    Args:
      texts: captions; read once.
      vocab_size: tokens, of which 3 are special and 256 are bytes; fewer are made if the texts do not give more.
      path: file to write.
      length: L, to be noted in the file, so that it need not be given when the tokenizer is opened.
      lower_case: whether the tokenizer lower-cases texts, here and later.
      min_frequency: how often a pair must occur to become a token.

    Returns the size of the vocabulary.

    Raises ConfigError for a vocabulary smaller than the bytes, a length without room, or a folder as path; DataError
    if there is no text.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(SPECIALS) + len(alphabet)
    if vocab_size < least:
        raise ConfigError(f"vocab_size={vocab_size}: must be {least} or more, for 256 bytes and {', '.join(SPECIALS)}")
    if length is not None and length < 3:
        raise ConfigError(f"length={length}: must be 3 or more, for one token beside BOS and EOS")
    if Path(path).is_dir():
        raise ConfigError(f"{path}: is a folder; give the file to write, such as {Path(path) / 'tokenizer.json'}")
    bpe = tokenizers.Tokenizer(models.BPE())
    if lower_case:
        bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(texts), trainer)
    pad, bos, eos = (bpe.token_to_id(name) for name in SPECIALS)
    bpe.post_processor = processors.TemplateProcessing(f"{BOS} $A {EOS}", special_tokens=[(BOS, bos), (EOS, eos)])
    bpe.enable_padding(pad_id=pad, pad_token=PAD)
    if length is not None:
        bpe.enable_truncation(length)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    bpe.save(str(path))
    return bpe.get_vocab_size()


def _texts(texts: Iterable[str]) -> Iterator[str]:
    """The texts that are not blank. Raises DataError if there is none."""
    empty = True
    for text in texts:
        if text.strip():
            empty = False
            yield text
    if empty:
        raise DataError("there is no text to train a tokenizer on")

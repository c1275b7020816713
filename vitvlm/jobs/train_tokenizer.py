"""A tokenizer of one's own, from a file of captions or from the texts of a data source."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import sources, tokenizers
from vitvlm.data.errors import DataError
from vitvlm.data.operations.text import texts_of


def train_tokenizer(
    source: str, target: str, vocab_size: int, fields: Sequence[str] = (), split: str = "train", **options: Any
) -> int:
    """Trains on the captions of `source` and writes `target` (see `tokenizers.train`, which takes the other options).

    Args:
      source: a text file with one caption per line, or what `sources.open` takes.
      fields: which texts of a data source's examples.
      split: of a data source.

    Returns the size of the vocabulary.
    """
    return tokenizers.train(captions(source, fields, split), vocab_size, target, **options)


def captions(source: str, fields: Sequence[str] = (), split: str = "train") -> Iterator[str]:
    """The lines of a text file, or some fields of every example of a data source.

    Raises ConfigError for a field that is not a text of the source, or one of a text file.
    """
    if Path(source).is_file():
        if fields:
            raise ConfigError(f"--fields={','.join(fields)}: {source} is a text file, a caption a line; leave it out")
        yield from _lines(Path(source))
        return
    opened = sources.open(source, split)
    for i in range(len(opened)):
        example = opened[i]
        texts = [name for name, value in example.items() if isinstance(value, (str, tuple)) and name != "id"]
        for field in fields or ("",):
            if field not in texts:
                raise ConfigError(f"--fields={field}: no such text in {opened.name}; {suggest(field, texts)}")
            yield from texts_of(example[field])


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from error

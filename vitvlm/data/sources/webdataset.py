"""WebDataset tars of images and captions, as img2dataset writes them: KEY.jpg (or .png, .webp …), KEY.txt, KEY.json."""

import dataclasses
import functools
import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.sources import tars
from vitvlm.data.sources.base import Example, Source
from vitvlm.data.sources.columns import as_fields

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


@dataclasses.dataclass(frozen=True)
class Record:
    """A place of a shard and what was found there; reading from `offset` on finds it again."""

    offset: int
    end: int
    found: Example | UnreadableImage


class TarSource(Source):
    """Shards by a pattern with braces and globs: "PATH/{00000..00099}.tar", "PATH/{cc3m,cc12m}/*.tar".

    An example holds "caption" (the text file, else the JSON's "caption", else None) and the JSON's other fields; ids
    are SHARD/KEY. Training reads shards from front to back, and never knows what lies ahead. Evaluation needs random
    access and a length: the first use of `len`, `ids` or `[]` makes one pass over the headers, not the contents, and
    keeps the place of every example in memory. There is one split, "all", as shards are chosen by the pattern.

    Raises ConfigError for another split, and DataError if there are no such shards.
    """

    label_names = ()
    streams = True

    def __init__(self, pattern: str, split: str):
        if split != "all":
            raise ConfigError(
                f"webdataset:{pattern}: no split {split!r}; write split='all', and choose the shards by the pattern "
                "(evaluation may name a source of its own)"
            )
        self.shards = expand(pattern)
        folders = [os.path.dirname(os.path.abspath(shard)) for shard in self.shards]
        self.shard_names = [os.path.relpath(shard, os.path.commonpath(folders)) for shard in self.shards]

    def read(self, shard: int, offset: int = 0) -> Iterator[Record]:
        """A shard's records from a byte on; whatever is wrong is a record of its own, an UnreadableImage."""
        for sample in self._samples(shard, offset):
            try:
                found = self._example(shard, sample)
            except UnreadableImage as error:
                found = error
            yield Record(sample.offset, sample.end, found)

    def first(self) -> Iterator[Example | UnreadableImage]:
        for shard in range(len(self.shards)):
            for record in self.read(shard):
                yield record.found

    def __str__(self) -> str:
        return f"{len(self.shards):,} shards"

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        return np.zeros(len(self), np.int32)

    @property
    def ids(self) -> Sequence[str]:
        return self._index[1]

    def __getitem__(self, index: int) -> Example:
        shard, offset = self._index[0][index]
        found = next(self.read(int(shard), int(offset))).found
        if isinstance(found, UnreadableImage):
            raise found
        return found

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def _index(self) -> tuple[Int[np.ndarray, "n 2"], list[str]]:
        """(shard and offset, id) of every record, which takes a pass over the headers."""
        places, ids = [], []
        for shard in range(len(self.shards)):
            for sample in self._samples(shard, 0, contents=False):
                places.append((shard, sample.offset))
                ids.append(self._id(shard, sample))
        return np.array(places, np.int64).reshape(-1, 2), ids

    def _samples(self, shard: int, offset: int, contents: bool = True) -> Iterator[tars.Sample]:
        try:
            with open(self.shards[shard], "rb", buffering=2**20) as file:
                yield from tars.samples(file, offset, contents)
        except OSError as error:
            yield tars.Sample("", offset, offset, {}, error.strerror or str(error))

    def _id(self, shard: int, sample: tars.Sample) -> str:
        return f"{self.shard_names[shard]}/{sample.key or f'byte {sample.offset}'}"

    def _example(self, shard: int, sample: tars.Sample) -> Example:
        """Raises UnreadableImage."""
        name = self._id(shard, sample)
        if sample.damage:
            raise UnreadableImage(sample.damage, name)
        images = [extension for extension in IMAGES if extension in sample.files]
        if len(images) != 1:
            seen = " and ".join(sorted(sample.files))
            raise UnreadableImage(f"needs one image ({', '.join(IMAGES)}), and holds {seen}", name)
        try:
            about: Any = json.loads(sample.files.get("json", b"{}"))
            text = sample.files["txt"].decode().strip() if "txt" in sample.files else None
        except ValueError as error:
            raise UnreadableImage(f"damaged text or JSON: {error}", name) from error
        if not isinstance(about, dict):
            raise UnreadableImage(f"its JSON is no object, but {type(about).__name__}", name)
        fields = as_fields(about)
        caption = fields.get("caption") if text is None else text
        return fields | {"caption": caption, "image": sample.files[images[0]], "label": 0, "id": name}


def expand(pattern: str) -> tuple[str, ...]:
    """The files that a pattern names, in the order of its braces and then by name.

    "{0000..0012}" counts with as many digits, "{a,b}" chooses; *, ? and [] are those of a shell. Raises DataError for
    files that are not there.
    """
    files: list[str] = []
    for name in _alternatives(os.path.expanduser(pattern)):
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name] * os.path.isfile(name)
        if not found:
            raise DataError(f"webdataset:{pattern}: no file {name}; check the pattern, or leave the missing shards out")
        files += found
    return tuple(dict.fromkeys(files))


def _alternatives(pattern: str) -> Iterator[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    counted = _RANGE.fullmatch(braces[1])
    if counted:
        first, last = counted.groups()
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    if not choices:
        raise DataError(f"webdataset:{pattern}: {{{braces[1]}}} counts nothing; write the smaller number first")
    for choice in choices:
        yield from _alternatives(pattern[: braces.start()] + choice + pattern[braces.end() :])

"""WebDataset tars, gzipped or not: KEY.jpg (or .png, .webp …), KEY.txt, KEY.json, and KEY.cls for labels."""

import contextlib
import dataclasses
import functools
import glob
import itertools
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vitvlm.core import json_texts
from vitvlm.core.config import ConfigError
from vitvlm.core.files import open_regular
from vitvlm.data import stat_data
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.names import is_text, readable
from vitvlm.data.sources import conversing, shard_counts, tars
from vitvlm.data.sources.base import Example, Source
from vitvlm.data.sources.columns import as_fields
from vitvlm.data.sources.gzipped import GzipReader, Points, compression
from vitvlm.data.sources.labels import USUAL, Classes, Labelling, Written, written

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff")
CLS = "cls"  # the member that holds a label
MOST_SHARDS = 300_000  # LAION-2B has 232,000
LONGEST_NUMBER = 12  # digits of a number in braces
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


@dataclasses.dataclass(frozen=True)
class Record:
    """A place of a shard and what was found there; reading from `offset` on finds it again.

    Where the rest of the shard is lost, the record stands for that too; see `TarSource.with_lost`.
    """

    offset: int
    end: int
    found: Example | UnreadableImage
    rest: str = "whole"  # see `tars.Sample`


class TarSource(Source):
    """Shards by a pattern with braces and globs: "PATH/{00000..00099}.tar", "PATH/{cc3m,cc12m}/*.tar.gz".

    An example holds "caption" (the text file, else the JSON's "caption", else None) and the JSON's other fields; ids
    are SHARD/KEY. If the JSON is a chat, or something asked and answered (`conversing.is_record`), the example has
    `images` in place of `image`: none, KEY.jpg, or KEY.0.jpg, KEY.1.jpg … by their numbers.

    Training reads shards from front to back, and never knows what lies ahead. Evaluation needs random access and a
    length: the first use of `len`, `ids` or `[]` makes one pass over the headers, not the contents, and keeps the place
    of every example in memory. There is one split, "all", as shards are chosen by the pattern.

    The label is what KEY.cls says, a name or an index, or else the JSON's "label": a name, an index, or a list of them
    where examples have several. The first sample decides which of these it is, unless `labelling.field` does; a sample
    without a label among those that have one is counted as unreadable. If the classes are not given, they are collected
    from all shards in that pass over the headers, which is then made before training too.

    A gzipped shard, told by its first bytes, is streamed as any other. But a pass over its headers decompresses all of
    it, going on in a stream decompresses the shard up to where it was, and random access some MB; see `gzipped.Points`.

    Raises ConfigError for another split, and DataError if there are no such shards, or no labels where
    `labelling.field` says.
    """

    streams = True
    label_remedy = (
        "add KEY.cls or a 'label' in KEY.json to each sample, or name the field of the JSON that is the label by "
        "config.data.label"
    )

    def __init__(self, pattern: str, split: str, labelling: Labelling = USUAL):
        if split != "all":
            raise ConfigError(
                f"webdataset:{pattern}: no split {split!r}; write split='all', and choose the shards by the pattern "
                "(evaluation may name a source of its own)"
            )
        self._where = f"webdataset:{pattern}"
        self.shards = expand(pattern)
        folders = [os.path.dirname(os.path.abspath(shard)) for shard in self.shards]
        self.shard_names = [readable(os.path.relpath(shard, os.path.commonpath(folders))) for shard in self.shards]
        self._given = labelling.names()
        self._field, label = self._find_labels(labelling.field)
        self.multi_label = isinstance(label, tuple)
        self._points: dict[int, Points] = {}
        self._bytes = tuple(size for size, _ in stat_data.stamps(self.shards))
        self._counts = shard_counts.read(self.shards)

    @property
    def label_names(self) -> tuple[str, ...]:
        return self._classes.names

    def read(self, shard: int, offset: int = 0) -> Iterator[Record]:
        """Yields a shard's records from a byte on; each damaged sample is a record with an UnreadableImage."""
        for sample in self._samples(shard, offset):
            yield self._record(shard, sample)

    def read_at(self, shard: int, offsets: Sequence[int]) -> Iterator[Record]:
        """Yields a shard's records at given bytes in ascending order; a gzipped shard is decompressed only once."""
        points = Points()
        for offset in offsets:
            with contextlib.closing(self._samples(shard, offset, points=points)) as samples:
                yield self._record(shard, next(samples))

    def with_lost(self, shard: int, record: Record, before: int, counted: int | None = None) -> Record:
        """Returns the record with the number of examples lost with it, if the rest of the shard is lost.

        That number is what the shard should hold, less those before: by an index beside it (`shard_counts`), as
        `counted` in an earlier pass, or else in proportion to the shard's size when the source was opened.
        """
        if record.rest == "whole" or not isinstance(record.found, UnreadableImage):
            return record
        known = self._counts.get(shard, counted)
        expected = self._estimate(shard, record.rest) if known is None else known
        lost = expected - before
        if lost < 2:
            return record
        name = record.found.name if before else self.shard_names[shard]
        all_of = (
            f"all its {lost:,} examples are" if not before else f"{lost:,} of the shard's {expected:,} examples are"
        )
        about = "" if known is not None else " (by its size)"
        reason = f"{record.found.reason}: {all_of} lost{about}"
        return dataclasses.replace(record, found=UnreadableImage(reason, name, lost))

    def _estimate(self, shard: int, rest: str) -> int:
        """Estimates how many examples a shard held at the start; 0 if it is still as large, or nothing is known."""
        size = self._bytes[shard]
        with contextlib.suppress(OSError):
            if rest == "cut" and os.path.getsize(self.shards[shard]) >= size:
                return 0
        return round(size * self._examples_per_byte)

    @functools.cached_property
    def _examples_per_byte(self) -> float:
        """Examples per byte of the first whole shard, by a pass over its headers; 0 without a whole shard."""
        for shard, size in enumerate(self._bytes):
            samples = list(self._samples(shard, 0, ()))
            if samples and samples[-1].rest == "whole" and not samples[-1].damage:
                return len(samples) / max(size, 1)
        return 0.0

    def first(self) -> Iterator[Example | UnreadableImage]:
        for shard in range(len(self.shards)):
            for record in self.read(shard):
                yield record.found

    def __str__(self) -> str:
        count = f"{len(self.shards):,} shards"
        if self._field is None:
            return f"{count}, no labels"
        place = ".cls" if self._field == CLS else f"the JSON's {self._field!r}"
        names = f"{len(self._given)} given classes" if self._given else "classes collected in a pass over the shards"
        return f"{count}, labels from {place}, {names}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_points": {}}  # zlib's states do not travel; a worker makes its own

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """The label of every example; -1 where there is none to be read."""
        if self.multi_label:
            return super().labels
        return np.array([-1 if label is None else label for label in self._all_labels], np.int32)

    @functools.cached_property
    def label_sets(self) -> Sequence[Int[np.ndarray, " k"]]:
        none = np.zeros(0, np.int32)
        return [none if label is None else label for label in self._all_labels]

    @property
    def _all_labels(self) -> list[Any]:
        if self._field is None:
            return [0] * len(self)
        return [None if label is None else self._classes.label(label, id_) for id_, label in zip(*self._index[1:])]

    @property
    def ids(self) -> Sequence[str]:
        return self._index[1]

    def stamps(self) -> Mapping[str, str]:
        return stat_data.described(dict(zip(self.shard_names, self.shards, strict=True)))

    def __getitem__(self, index: int) -> Example:
        shard, offset = map(int, self._index[0][index])
        points = self._points.setdefault(shard, Points())
        with contextlib.closing(self._samples(shard, offset, points=points)) as samples:
            return self._example(shard, next(samples))

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def _classes(self) -> Classes:
        if self._field is None:
            return Classes(())
        if self._given:
            return Classes(self._given)
        found = Classes.found(label for label in self._index[2] if label is not None)
        if not found.names:
            raise DataError(f"{self._where}: no sample names a class in {self._field!r}")
        return found

    @functools.cached_property
    def _index(self) -> tuple[Int[np.ndarray, "n 2"], list[str], list[Written | None]]:
        """Returns (shard and offset, id, label as written) of every record, which takes a pass over the headers."""
        places, ids, labels = [], [], []
        wanted = () if self._field is None else (CLS,) if self._field == CLS else ("json",)
        for shard in range(len(self.shards)):
            for before, sample in enumerate(self._samples(shard, 0, wanted)):
                name = self._id(shard, sample)
                places.append((shard, sample.offset))
                ids.append(name)
                labels.append(self._readable_label(sample, name))
                if sample.rest != "whole":
                    stands_for = self._record(shard, sample, before).found.examples
                    places += [(shard, sample.offset)] * (stands_for - 1)
                    ids += [f"{name} and {more} more" for more in range(1, stands_for)]
                    labels += [None] * (stands_for - 1)
        return np.array(places, np.int64).reshape(-1, 2), ids, labels

    def _find_labels(self, field: str | None) -> tuple[str | None, Written | None]:
        """Finds the field of the labels (`field`, or else what the first whole sample has) and the first label."""
        if field == "":
            return None, None
        seen = ""
        for sample in self._samples(0, 0, (CLS, "json")):
            try:
                about = _json(sample)
            except ValueError:
                continue
            if sample.damage:
                continue
            for name in (CLS, "label") if field is None else (field,):
                label = _written_label(sample, name, self._where)
                if label is not None:
                    return name, label
            if field is None:
                return None, None
            seen = seen or ", ".join([*(f".{extension}" for extension in sample.files), *about])
        if field is None:
            return None, None
        raise DataError(f"{self._where}: no sample of its first shard has a label in {field!r}; it has {seen}")

    def _readable_label(self, sample: tars.Sample, name: str) -> Written | None:
        """Returns the label as written; None if there is none, or if it is of another kind than the first sample's."""
        if self._field is None or sample.damage:
            return None
        try:
            label = _written_label(sample, self._field, name)
            if label is None or isinstance(label, tuple) != self.multi_label:
                return None
            if self._given:
                self._classes.label(label, name)
        except (DataError, ValueError):
            return None
        return label

    def _samples(
        self, shard: int, offset: int, wanted: Container[str] | None = None, points: Points | None = None
    ) -> Iterator[tars.Sample]:
        try:
            with open_regular(self.shards[shard], buffering=2**20) as file:
                kind = compression(file)
                if kind in (None, "gzip"):
                    yield from tars.samples(GzipReader(file, points) if kind else file, offset, wanted)
                else:
                    damage = f"is compressed by {kind}: unpack it, or compress it by gzip, which is read"
                    yield tars.Sample("", offset, tars.END, {}, damage, "unreadable")
        except OSError as error:
            yield tars.Sample("", offset, tars.END, {}, error.strerror or str(error), "unreadable")

    def _record(self, shard: int, sample: tars.Sample, before: int | None = None) -> Record:
        """Makes the record of a sample; given the number of samples `before` it, also counts what is lost with it."""
        try:
            found: Example | UnreadableImage = self._example(shard, sample)
        except UnreadableImage as error:
            found = error
        record = Record(sample.offset, sample.end, found, sample.rest)
        return record if before is None else self.with_lost(shard, record, before)

    def _id(self, shard: int, sample: tars.Sample) -> str:
        return f"{self.shard_names[shard]}/{readable(sample.key) or f'byte {sample.offset}'}"

    def _example(self, shard: int, sample: tars.Sample) -> Example:
        """Makes the example of a sample. Raises UnreadableImage."""
        name = self._id(shard, sample)
        if sample.damage:
            raise UnreadableImage(sample.damage, name)
        images = [extension for extension in sorted(sample.files, key=_in_order) if _is_image(extension)]
        try:
            about = _json(sample)
            text = sample.files["txt"].decode("utf-8-sig").strip() if "txt" in sample.files else None
            label = None if self._field is None else _written_label(sample, self._field, name)
        except ValueError as error:
            reason = error.reason if isinstance(error, UnreadableImage) else f"damaged text or JSON: {error}"
            raise UnreadableImage(reason, name) from error
        record = conversing.is_record(about)
        if len(images) != 1 and not record:
            seen = " and ".join(sorted(sample.files))
            raise UnreadableImage(f"needs one image ({', '.join(IMAGES)}), and holds {seen}", name)
        fields = as_fields({key: value for key, value in about.items() if not (record and key in ("image", "images"))})
        for field, value in fields.items():
            if not all(map(is_text, value if isinstance(value, tuple) else (value,))):
                raise UnreadableImage(f"{field!r} in its JSON holds half of a character (a lone surrogate)", name)
        caption = fields.get("caption") if text is None else text
        if isinstance(caption, str) and not caption.strip():
            caption = None
        shown = [sample.files[extension] for extension in images]
        return fields | {
            "caption": caption,
            **({"images": shown} if record else {"image": shown[0]}),
            "label": self._label(label, name),
            "id": name,
        }

    def _label(self, label: Written | None, name: str) -> int | Int[np.ndarray, " k"]:
        """Returns the index of a label, or the indices of several. Raises UnreadableImage."""
        if self._field is None:
            return 0
        if label is None:
            raise UnreadableImage(f"has no label in {self._field!r}, and others have", name)
        if isinstance(label, tuple) != self.multi_label:
            reason = "its label is not a list, and others are" if self.multi_label else "its label is a list"
            raise UnreadableImage(reason, name)
        try:
            return self._classes.label(label, "")
        except DataError as error:
            raise UnreadableImage(str(error).removeprefix(": "), name) from error


def _is_image(extension: str) -> bool:
    """Tells of "jpg", and of "0.jpg" among several images of a sample, whether it is an image."""
    return extension.rpartition(".")[2] in IMAGES


def _in_order(extension: str) -> tuple[int, str]:
    """Sorts the images of a sample by their numbers."""
    number = extension.partition(".")[0]
    return (int(number) if number.isdecimal() and len(number) < 10 else -1, extension)


def _json(sample: tars.Sample) -> dict[str, Any]:
    """Reads a sample's JSON object, empty without one. Raises ValueError for anything else."""
    about = json_texts.loads(sample.files.get("json", b"{}"))
    if not isinstance(about, dict):
        raise UnreadableImage(f"its JSON is not an object but {type(about).__name__}", sample.key)
    return about


def _written_label(sample: tars.Sample, field: str, where: str) -> Written | None:
    """Reads a sample's label as it is written; None if it has none. Raises ValueError."""
    if field == CLS:
        return written(sample.files[CLS].decode("utf-8-sig"), where) if CLS in sample.files else None
    return written(_json(sample).get(field), f"{where}: {field!r}")


def expand(pattern: str) -> tuple[str, ...]:
    """The files that a pattern names, in the order of its braces and then by name.

    "{0000..0012}" counts with as many digits, "{a,b}" chooses; *, ? and [] are those of a shell. Raises DataError for
    files that are not there.
    """
    files: list[str] = []
    named = list(itertools.islice(_alternatives(os.path.expanduser(pattern)), MOST_SHARDS + 1))
    if len(named) > MOST_SHARDS:
        raise DataError(f"webdataset:{pattern:.200}: names more than {MOST_SHARDS:,} files; check its braces")
    for name in named:
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
        if len(first) > LONGEST_NUMBER or len(last) > LONGEST_NUMBER:
            raise DataError(f"webdataset:{pattern:.200}: {{{braces[1]:.60}}} counts too far")
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)[: MOST_SHARDS + 1]]
    else:
        choices = braces[1].split(",")
    if not choices:
        raise DataError(f"webdataset:{pattern}: {{{braces[1]}}} counts nothing; write the smaller number first")
    for choice in choices:
        yield from _alternatives(pattern[: braces.start()] + choice + pattern[braces.end() :])

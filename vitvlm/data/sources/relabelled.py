"""Sources whose classes are renamed, or put onto a list of classes that is not their own."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vitvlm.core import classes
from vitvlm.data.accounting import Files
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.kinds import Fields
from vitvlm.data.sources.base import Example, Source


class Relabelled(Source):
    """The examples of another source under other classes: class i of the source is class `table[i]` of `label_names`.

    A streamed source stays one, with what `sources.webdataset.TarSource` offers for that.
    """

    def __init__(self, source: Source, label_names: Sequence[str], table: Sequence[int], renames: Mapping[str, str]):
        self.name = source.name
        self.label_names = tuple(label_names)
        self.renames = {**source.renames, **renames}
        self.label_doubt = source.label_doubt
        self.multi_label = source.multi_label
        self.streams = source.streams
        self.has_quick_texts = source.has_quick_texts
        self._source = source
        self._table = np.array(table, np.int32)

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        own = self._source.labels
        return np.where(own < 0, own, self._table[own])  # below 0: there is none to be read

    @functools.cached_property
    def label_sets(self) -> Sequence[Int[np.ndarray, " k"]]:
        return [np.unique(self._table[own]) for own in self._source.label_sets]

    @property
    def fields(self) -> Fields:
        return self._source.fields

    @property
    def files(self) -> tuple[Files, ...]:
        return self._source.files

    @property
    def ids(self) -> Sequence[str]:
        return self._source.ids

    def __getitem__(self, index: int) -> Example:
        return self._placed(self._source[index])

    def stamps(self) -> Mapping[str, str]:
        return self._source.stamps()

    @property
    def groups(self) -> Sequence[str]:
        return self._source.groups

    def outline(self, index: int) -> Example:
        return self._placed(self._source.outline(index))

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        return self._source.text(index, name)

    def holds_one_text(self, name: str) -> bool:
        return self._source.holds_one_text(name)

    def __len__(self) -> int:
        return len(self._source)

    def __str__(self) -> str:
        return str(self._source)

    def first(self) -> Iterator[Example | UnreadableImage]:
        return map(self._placed, self._source.first())

    @property
    def shards(self) -> Sequence[str]:
        return self._source.shards

    @property
    def shard_names(self) -> Sequence[str]:
        return self._source.shard_names

    def read(self, shard: int, offset: int = 0) -> Iterator[Any]:
        """A shard's records from a byte on."""
        return map(self._placed_record, self._source.read(shard, offset))

    def read_at(self, shard: int, offsets: Sequence[int]) -> Iterator[Any]:
        """A shard's records at some bytes."""
        return map(self._placed_record, self._source.read_at(shard, offsets))

    def with_lost(self, shard: int, record: Any, before: int, counted: int | None = None) -> Any:
        """A record with the number of examples that are lost with it."""
        return self._source.with_lost(shard, record, before, counted)

    def _placed_record(self, record: Any) -> Any:
        return dataclasses.replace(record, found=self._placed(record.found))

    def _placed(self, found: Example | UnreadableImage) -> Example | UnreadableImage:
        if isinstance(found, UnreadableImage):
            return found
        label = self._table[found["label"]]
        return {**found, "label": np.unique(label) if self.multi_label else int(label)}


def renamed(source: Source, names: Mapping[str, str]) -> Source:
    """The source with its classes renamed by {class: new name}; classes of one new name become one.

    Names that are not classes of the source are skipped.
    """
    renames = {name: names[name] for name in source.label_names if name in names}
    if not renames:
        return source
    each = [renames.get(name, name) for name in source.label_names]
    own = tuple(dict.fromkeys(each))
    return Relabelled(source, own, [own.index(name) for name in each], renames)


def placed(source: Source, names: Sequence[str], whose: str, remedy: str) -> Source:
    """The source under the classes `names`, found by name; it need not have them all.

    Args:
      whose: what has these classes, for the message: "the training data, folder:PATH train".
      remedy: what to do about a class that is not among them.

    Raises DataError that lists the source's classes that are not among `names`.
    """
    if tuple(names) == source.label_names:
        return source
    found = classes.match(source.label_names, names, [classes.EXACT])
    if found.missing or found.unclear:
        near = classes.match(found.missing, names)
        hints = [f"{name!r} may be {names[place]!r}" for name, place in near.places.items()]
        raise DataError(
            f"{source.name}: {absent(found, source.label_names)} {whose} ({classes.listed(names)})"
            f"{': ' + ', '.join(hints) if hints else ''}; {remedy}"
        )
    return Relabelled(source, names, [found.places[name] for name in source.label_names], {})


def absent(found: classes.Matched, names: Sequence[str]) -> str:
    """Names the classes that were not found, as the beginning of a sentence: "its class 'emu' is none of"."""
    if found.unclear:
        return f"{'; '.join(found.unclear)}, of the classes of"
    if not found.places:
        return f"no class of it ({classes.listed(names)}) is one of"
    several = len(found.missing) > 1
    return f"its class{'es' * several} {classes.listed(found.missing)} {'are' if several else 'is'} none of"

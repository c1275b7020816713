"""Splits and labels of rows, whatever each row is an example of: an image with its captions, or a text."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import splits
from vitvlm.data.errors import DataError
from vitvlm.data.sources.base import Source
from vitvlm.data.sources.labels import Classes, Labelling, same_kind

TEST_SHARE = 0.1  # of rows that say nothing of splits
NAMES = ("train", "test", "all")


@dataclasses.dataclass(frozen=True)
class Table:
    """One split of rows by name, with their labels.

    Attributes:
      names: of the rows of this split, in order.
      multi_label: a row has any number of classes.
      label_names: the classes; none if rows have no labels.
      labels: the label of each row of the split; 0 without any.
    """

    names: Sequence[str]
    multi_label: bool
    label_names: tuple[str, ...]
    labels: Sequence[int | Int[np.ndarray, " k"]]


class TableSource(Source):
    """Base of sources whose examples are rows of a table; a subclass sets `_ids` and calls `_take`."""

    has_quick_texts = True
    label_remedy = "add a 'label' to each row, or name the column that is the label by config.data.label"

    _ids: Sequence[str]

    def _take(self, found: Table) -> None:
        """Takes the classes and labels of the rows from a table."""
        self.multi_label, self.label_names, self._labels = found.multi_label, found.label_names, found.labels

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        return super().labels if self.multi_label else np.array(self._labels, np.int32)

    @property
    def label_sets(self) -> Sequence[Int[np.ndarray, " k"]]:
        return self._labels if self.multi_label else super().label_sets

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Sequence[str]:
        return self._ids


def read(rows: Mapping[str, Mapping[str, Any]], split: str, where: str, labelling: Labelling, what: str) -> Table:
    """Finds a split and its labels among rows by name; `what` a row is, "image" for one, is for messages.

    Raises:
      DataError: if there is no row, or only some have a label or a split.
      ConfigError: if there is no such split.
    """
    if not rows:
        raise DataError(f"{where}: lists no {what}")
    for column in ("label", "split"):
        without = [name for name, row in rows.items() if row.get(column) in (None, "")]
        if without and len(without) < len(rows):
            raise DataError(f"{where}: {without[0]!r} has no {column}, and others have: give it to all, or to none")
    says = next(iter(rows.values())).get("split") not in (None, "")
    told = [str(row["split"]).strip() for row in rows.values()] if says else None
    names = _in_split(list(rows), told, split, where)
    labels = {name: row["label"] for name, row in rows.items() if row.get("label") is not None}
    if labelling.field and not labels:
        columns = dict.fromkeys(name for row in rows.values() for name in row if name != "label")
        raise DataError(f"{where}: no {what} has a label in {labelling.field!r}; {suggest(labelling.field, columns)}")
    multi_label = same_kind(labels.items(), where)
    given = labelling.names()
    # Where rows say their split, a class that only other splits have is none of this one.
    own = labels.values() if told is None else [labels[name] for name in names if name in labels]
    classes = Classes(given) if given else Classes.found(own)
    if labels and not classes.names:
        raise DataError(f"{where}: every list of labels is empty")
    each = [classes.label(labels[name], f"{where}: {name!r}") if labels else 0 for name in names]
    return Table(names, multi_label, classes.names if labels else (), each)


def _in_split(names: list[str], told: list[str] | None, split: str, where: str) -> list[str]:
    known = NAMES if told is None else (*sorted(set(told)), "all")
    spelled: dict[str, str] = {}
    for name in known:
        if (other := spelled.setdefault(name.casefold(), name)) != name:
            raise DataError(f"{where}: the split column holds {other!r} and {name!r}: write the same for both")
    split = spelled.get(split.casefold(), split)
    if split not in known:
        raise ConfigError(f"{where}: no split {split!r}; {suggest(split, known)}")
    if split == "all":
        return names
    if told is None:
        told = [splits.by_shares(name, {"test": TEST_SHARE}) for name in names]
    return [name for name, each in zip(names, told, strict=True) if each == split]

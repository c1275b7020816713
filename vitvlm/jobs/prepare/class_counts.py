"""Counts of each class in a source, before and after examples were dropped, by split."""

import collections
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitvlm.data.sources import Source
from vitvlm.jobs.prepare.scan import Seen


class Counts(NamedTuple):
    """A class with its examples by split, in the order of the splits, as (before, after)."""

    name: str
    of_splits: tuple[tuple[int, int], ...]

    @property
    def whole(self) -> tuple[int, int]:
        before, after = (sum(each) for each in zip(*self.of_splits))
        return before, after


def count(
    seen: Sequence[Seen], kept: Collection[int], opened: Mapping[str, Source], names: Sequence[str]
) -> list[Counts]:
    """Counts the classes of all splits, the most frequent first; empty for a source without classes.

    An example with several labels counts for each of them.

    Args:
      seen: all examples; kept: places of those that stay.
      opened: the splits that were read; names: the classes of all of them.
    """
    if not names:
        return []
    splits = list(dict.fromkeys(one.split for one in seen))
    found: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0])
    labels = {name: source.label_sets if source.multi_label else source.labels for name, source in opened.items()}
    for place, one in enumerate(seen):
        own = opened[one.read].label_names
        for label in np.atleast_1d(labels[one.read][one.index]):
            if 0 <= label < len(own):
                counts = found[own[label], one.split]
                counts[0] += 1
                counts[1] += place in kept
    each = [Counts(name, tuple((found[name, split][0], found[name, split][1]) for split in splits)) for name in names]
    return sorted(each, key=lambda counts: -counts.whole[0])


def as_json(counts: Sequence[Counts], splits: Sequence[str]) -> dict[str, Any]:
    """The counts by class and split."""
    return {
        one.name: {split: {"before": before, "after": after} for split, (before, after) in zip(splits, one.of_splits)}
        for one in counts
    }

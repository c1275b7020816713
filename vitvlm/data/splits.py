"""Splits such as "train", "test[:10%]" and "train[500:1000]", and stratified choices that depend on no state."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError
from vitvlm.data.names import readable

_SPLIT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\[(-?[0-9_]+%?)?:(-?[0-9_]+%?)?\])?")


@dataclasses.dataclass(frozen=True)
class Split:
    """A named split and the slice of it that is wanted; bounds are text such as "500", "-500" or "10%"."""

    name: str
    start: str | None = None
    stop: str | None = None

    def indices(self, count: int) -> range:
        """The positions that the slice selects among `count` examples; percentages round to the nearest example.

        Raises ConfigError if nothing is selected.
        """
        selected = range(*slice(_bound(self.start, count), _bound(self.stop, count)).indices(count))
        if not selected:
            raise ConfigError(f"split {str(self)!r} selects none of the {count} examples")
        return selected

    def __str__(self) -> str:
        if self.start is None and self.stop is None:
            return self.name
        return f"{self.name}[{self.start or ''}:{self.stop or ''}]"


def parse(split: str) -> Split:
    """Reads "train", "train[:10%]", "train[500:]" or "test[-100:]". Raises ConfigError for anything else."""
    parsed = _SPLIT.fullmatch(split.replace(" ", "")) if isinstance(split, str) else None
    if parsed is None:
        raise ConfigError(f'split {split!r} is not a split; write "train", "test", "train[:10%]" or "train[500:1000]"')
    return Split(parsed[1], parsed[2], parsed[3])


def stratified_order(names: Sequence[str], labels: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """A shuffled order in which every slice holds the classes in their overall proportions.

    Within a class the order is that of a keyed hash of the names, so that it is the same on every machine and a new
    example moves no other one to another side of a split for more than one place. Between classes the j-th of n_c
    examples sorts at (j + 1/2) / n_c.
    """
    labels = np.asarray(labels)
    hashed = np.argsort([_hash(name, seed) for name in names], kind="stable")
    place = np.empty(len(names))
    for label in np.unique(labels):
        members = hashed[labels[hashed] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((labels, place))


def stratified_fraction(
    names: Sequence[str], labels: Int[np.ndarray, " n"], fraction: float, seed: int
) -> Int[np.ndarray, " k"]:
    """Sorted positions of `fraction` of each class, at least one of each: the same choice for the same seed.

    Raises ConfigError unless 0 < fraction <= 1.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"labels_fraction={fraction!r} must be above 0 and at most 1 (0.01 is 1 % of the labels)")
    labels = np.asarray(labels)
    order = stratified_order(names, labels, seed)
    chosen = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))


def by_shares(name: str, shares: Mapping[str, float], rest: str = "train") -> str:
    """The split that an example belongs to by a hash of its name and nothing else: {"test": 0.1} is a tenth, about.

    A name stays in its split whatever else is added to the data or taken away, and "test" stays the same where further
    splits are added behind it.

    Raises ConfigError for shares that are not above 0, or that leave nothing for the rest.
    """
    if not all(share > 0 for share in shares.values()) or sum(shares.values()) >= 1 or rest in shares:
        raise ConfigError(f"split {dict(shares)}: shares must be above 0, their sum below 1; {rest!r} has what is left")
    place = _hash(name, seed=0) / 2**64
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return rest


def _bound(text: str | None, count: int) -> int | None:
    if text is None:
        return None
    if text.endswith("%"):
        return round(int(text[:-1]) * count / 100)
    return int(text)


def _hash(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(readable(name).encode(), digest_size=8, key=str(seed).encode()).digest())

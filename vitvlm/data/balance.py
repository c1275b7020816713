"""Balanced sampling: epochs in which rare classes are drawn more often than they occur."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from vitvlm.core.config import ConfigError
from vitvlm.data.sources.base import Source, check_classes

# A stream of random numbers besides those of `plans` and `streams`.
_BALANCE = 4


class Epoch(NamedTuple):
    """The draws of an epoch in order: position in the source, and how often it was drawn before in this epoch."""

    index: Int[np.ndarray, " n"]
    draw: Int[np.ndarray, " n"]


class Balance:
    """Draws classes by shares in proportion to n_c^(1 - balance), of the numbers n_c of their images.

    With balance 1 each class is drawn equally often, with 0 as often as it occurs, with 0.5 by the square root of that
    (Kang et al. 2020, section 3, with q = 1 - balance). An epoch is as many draws as there are images. In it, a class
    is drawn its share of times, rounded up or down at random so that the shares are exact on average, and its images
    in turn: each as often as any other of the class, or once more. What is drawn follows from seed and epoch.

    Raises ConfigError for a balance outside 0 to 1 and for multi-label sources, DataError for unlabelled ones.
    """

    def __init__(self, source: Source, balance: float, seed: int):
        if isinstance(balance, bool) or not isinstance(balance, (int, float)) or not 0 <= balance <= 1:
            raise ConfigError(f"balance={balance!r} must be from 0 (as the data is) to 1 (each class equally often)")
        check_classes(source, f"balance={balance:g}")
        if source.multi_label:
            raise ConfigError(
                f"balance={balance:g} draws classes, and the images of {source.name} have several labels each: use "
                "task.class_weights"
            )
        self.balance, self._seed = balance, seed
        labels = source.labels
        self._length = len(labels)
        self._names = [name for label, name in enumerate(source.label_names) if (labels == label).any()]
        # What cannot be read has label -1, and is not drawn.
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
        self.counts = np.array([len(members) for members in self._members])

    @property
    def draws(self) -> Float[np.ndarray, " c"]:
        """Returns the mean number of draws in an epoch of each class that has images."""
        weights = self.counts ** (1.0 - self.balance)
        return self._length * weights / weights.sum()

    def epoch(self, number: int) -> Epoch:
        return _epoch(self, number)

    def __str__(self) -> str:
        """Describes an epoch for the log."""
        if len(self.counts) <= 10:
            each = zip(self._names, self.counts, self.draws, strict=True)
            told = ", ".join(f"{name} {count} -> {draws:.4g}" for name, count, draws in each)
        else:
            rare, common = np.argmin(self.counts), np.argmax(self.counts)
            told = f"{len(self.counts)} classes, from " + " to ".join(
                f"{self._names[c]} {self.counts[c]} -> {self.draws[c]:.4g}" for c in (rare, common)
            )
        return f"balance {self.balance:g}: an epoch is {self._length:,} draws (images -> draws: {told})"


@functools.lru_cache(maxsize=2)
def _epoch(balance: Balance, number: int) -> Epoch:
    rng = np.random.default_rng((_BALANCE, balance._seed, number))
    bounds = np.append(0, np.cumsum(balance.draws))
    bounds[-1] = balance._length  # to the last bit
    counts = np.diff(np.floor(bounds + rng.uniform()).astype(int))
    index, draw = [], []
    for members, count in zip(balance._members, counts, strict=True):
        rounds, rest = divmod(int(count), len(members))
        index += [np.tile(members, rounds), rng.permutation(members)[:rest]]
        draw += [np.repeat(np.arange(rounds), len(members)), np.full(rest, rounds)]
    order = rng.permutation(balance._length)
    return Epoch(np.concatenate(index)[order], np.concatenate(draw)[order])

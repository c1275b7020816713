"""Plans of batches: random access to the batch of any step, so that an iterator's state is one number.

What an example becomes is for `loader` to say.
"""

import dataclasses
import functools
import sys
from typing import Any

import numpy as np

from vitvlm.data.balance import Balance
from vitvlm.data.loader import Loader

# A stream of random numbers; that of the operations differs for equal seeds.
_SHUFFLE = 1


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """Random access to an endless stream: [step] is this process's part of that global batch.

    An epoch holds each example once, or is drawn by classes where there is a `balance`.
    """

    loader: Loader
    batch_size: int
    process_index: int
    process_count: int
    balance: Balance | None = None

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size

    def __getitem__(self, step: int) -> dict[str, Any]:
        if self.balance is None:
            return self.loader.batch([self._place(position) for position in _share(self, step)])
        rows, draws = zip(*map(self._balanced_place, _share(self, step)), strict=True)
        return self.loader.batch(list(rows), list(draws))

    def identity(self) -> dict[str, Any]:
        """Settings that must stay the same for a saved step number to mean the same batch."""
        same = {"examples": len(self.loader.source), "seed": self.loader.seed, "batch_size": self.batch_size}
        return same | ({"balance": self.balance.balance} if self.balance else {})

    @property
    def most_lost(self) -> int:
        """Number of unreadable images in a row from which on all are taken to be unreadable."""
        return 2 * len(self.loader.source)

    def _place(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, len(self.loader.source))
        return epoch, int(shuffled(len(self.loader.source), self.loader.seed, epoch)[place])

    def _balanced_place(self, position: int) -> tuple[tuple[int, int], int]:
        """Returns ((epoch, index), draw) at a position of the balanced stream."""
        epoch, place = divmod(position, len(self.loader.source))
        drawn = self.balance.epoch(epoch)
        return (epoch, int(drawn.index[place])), int(drawn.draw[place])


@dataclasses.dataclass(frozen=True)
class EvalPlan:
    """Random access to one pass in order, padded to whole batches."""

    loader: Loader
    batch_size: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return -(-len(self.loader.source) // self.batch_size)

    def __getitem__(self, step: int) -> dict[str, Any]:
        count = len(self.loader.source)
        return self.loader.batch([(0, place) if place < count else None for place in _share(self, step)])


@functools.lru_cache(maxsize=2)
def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((_SHUFFLE, seed, epoch)).permutation(count)


def _share(plan: TrainPlan | EvalPlan, step: int) -> range:
    """The positions in the global stream that this process makes for a step."""
    rows = plan.batch_size // plan.process_count
    start = step * plan.batch_size + plan.process_index * rows
    return range(start, start + rows)

"""Counting and naming the images that cannot be read."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from vitvlm.data.errors import TooManyUnreadable

_NAMES_KEPT = 1000
_NAMES_SHOWN = 5
_EPOCHS_KEPT = 3
_DEVIATIONS = 5  # by how many an epoch's count may exceed its mean, where processes share the examples out


class Bad(NamedTuple):
    """An unreadable image of an epoch, or `examples` of them at once, such as those of a missing shard."""

    name: str
    reason: str
    examples: int
    epoch: int


@dataclasses.dataclass
class Unreadable:
    """Unreadable images among those that this process has seen so far, an image counted as often as it came up.

    `names` has the id of each and the reason (of the first thousand). More than `share` of the images is an error: of
    all that were seen, and also of one epoch, so that data which vanish late in a long training do not hide behind
    what was read before. The share is taken of at least `after` images, so that one bad image at the start does not
    stop the job.

    Attributes:
      epochs: (seen, unreadable) of the last few epochs.
    """

    share: float
    after: int
    seen: int = 0
    count: int = 0
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    epochs: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def add(self, epochs: Iterable[int], unreadable: Iterable[Bad]) -> list[Bad]:
        """Counts one batch: the epoch of each of its examples, and what was unreadable among them.

        Returns those that are met for the first time. Raises TooManyUnreadable.
        """
        unreadable = [Bad(*bad) for bad in unreadable]
        new = [bad for bad in unreadable if bad.name not in self.names]
        for bad in new[: max(_NAMES_KEPT - len(self.names), 0)]:
            self.names[bad.name] = bad.reason
        for epoch, seen in collections.Counter(epochs).items():
            self._count(epoch, seen, 0)
        for bad in unreadable:
            self._count(bad.epoch, bad.examples - 1, bad.examples)  # its row is among those counted above
        self._forget()
        met = [bad.name for bad in unreadable]
        if self.count > self.share * max(self.seen, self.after):
            raise TooManyUnreadable(f"{self.count:,} of {self.seen:,} images {self._too_many(met)}")
        for epoch, (seen, count) in self.epochs.items():
            limit = self.share * max(seen, self.epochs.get(epoch - 1, (0, 0))[0], self.after)
            if count > limit + _DEVIATIONS * limit**0.5:
                whole = f"in epoch {epoch + 1} of the data, {count:,} of the {seen:,} images so far"
                raise TooManyUnreadable(f"{whole} {self._too_many(met)}")
        return new

    def state(self) -> dict[str, Any]:
        """Returns the counts as JSON."""
        counted = {"seen": self.seen, "count": self.count, "names": self.names}
        return counted | {"epochs": [[epoch, *counts] for epoch, counts in self.epochs.items()]}

    def restored(self, state: dict[str, Any]) -> "Unreadable":
        """Returns the same limits with the counts of a `state`."""
        epochs = {epoch: (seen, count) for epoch, seen, count in state.get("epochs", ())}
        counted = {name: state[name] for name in ("seen", "count", "names")}
        return dataclasses.replace(self, **counted, epochs=epochs)

    def _count(self, epoch: int, seen: int, count: int) -> None:
        self.seen, self.count = self.seen + seen, self.count + count
        before = self.epochs.get(epoch, (0, 0))
        self.epochs[epoch] = (before[0] + seen, before[1] + count)

    def _forget(self) -> None:
        for epoch in sorted(self.epochs)[:-_EPOCHS_KEPT]:
            del self.epochs[epoch]

    def _too_many(self, met: Iterable[str]) -> str:
        """The end of an error's line; it names what was just met first."""
        return (
            f"cannot be read, more than max_unreadable_fraction={self.share:g}: {self._shown(met)}; "
            "repair or remove them, or raise max_unreadable_fraction"
        )

    def _shown(self, first: Iterable[str] = ()) -> str:
        names = {name: self.names[name] for name in first if name in self.names} | self.names
        shown = [f"{name}: {reason}" for name, reason in itertools.islice(names.items(), _NAMES_SHOWN)]
        more = len(names) - len(shown)
        return "; ".join(shown) + (f"; and {more} more" if more else "")

    def __str__(self) -> str:
        return self._shown()

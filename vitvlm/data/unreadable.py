"""Counting and naming the images that cannot be read."""

import dataclasses
import itertools

from vitvlm.data.errors import TooManyUnreadable

_NAMES_KEPT = 1000
_NAMES_SHOWN = 5


@dataclasses.dataclass
class Unreadable:
    """Unreadable images among those that this process has seen so far, an image counted as often as it came up.

    `names` has the id of each and the reason (of the first thousand). More than `share` of the images is an error; the
    share is taken of at least `after` images, so that one bad image at the start does not stop the job.
    """

    share: float
    after: int
    seen: int = 0
    count: int = 0
    names: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, seen: int, unreadable: list[tuple[str, str]]) -> None:
        """Counts one batch. Raises TooManyUnreadable."""
        self.seen += seen
        self.count += len(unreadable)
        for name, reason in unreadable:
            if len(self.names) < _NAMES_KEPT:
                self.names.setdefault(name, reason)
        if self.count > self.share * max(self.seen, self.after):
            raise TooManyUnreadable(
                f"{self.count} of {self.seen} images cannot be read, more than bad_share={self.share:g}: {self}; "
                "repair or remove them, or raise bad_share"
            )

    def __str__(self) -> str:
        shown = [f"{name}: {reason}" for name, reason in itertools.islice(self.names.items(), _NAMES_SHOWN)]
        more = len(self.names) - len(shown)
        return "; ".join(shown) + (f"; and {more} more" if more else "")

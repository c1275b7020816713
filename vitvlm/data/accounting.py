"""Accounting of every file of a data set: used, left out by a rule, or unreadable."""

import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

_KEPT, _SHOWN = 100, 3  # names of each rule: in files.json, and in the line


@dataclasses.dataclass
class Tally:
    """Number of files or other things, and the names of the first few."""

    count: int = 0
    names: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < _KEPT:
            self.names.append(name)

    @classmethod
    def of(cls, names: Iterable[str]) -> "Tally":
        tally = cls()
        for name in names:
            tally.add(name)
        return tally

    def __str__(self) -> str:
        shown = ", ".join(self.names[:_SHOWN])
        return shown + (", …" if self.count > _SHOWN else "")


def tallies() -> dict[str, Tally]:
    """Makes a mapping of tallies by name, each created at its first use."""
    return collections.defaultdict(Tally)


@dataclasses.dataclass(frozen=True)
class Files:
    """Every file of one place: `total` is `used` + `elsewhere` + those skipped + those unreadable.

    Attributes:
      place: the source whose files they are: "folder:PATH".
      images: how many images there are, the unreadable ones among them.
      used: how many of them this split and slice has and can read, as far as it shows without decoding them.
      skipped: files that are not images of the set, by the rule that leaves them out.
      unreadable: reasons why images of any split cannot be read, by their names.
      notes: what may be a mistake but leaves no file out.
      prefix: what the names in `unreadable` have before the ids of this split: "train/".
      names: of a source whose examples are not one file each, the files of each, by id.
    """

    place: str
    images: int
    used: int
    skipped: Mapping[str, Tally]
    unreadable: Mapping[str, str]
    notes: Mapping[str, Tally] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    names: Mapping[str, Collection[str]] | None = None

    @property
    def elsewhere(self) -> int:
        """Images of other splits and slices."""
        return self.images - len(self.unreadable) - self.used

    @property
    def total(self) -> int:
        return self.images + sum(tally.count for tally in self.skipped.values())

    def of(self, ids: Collection[str]) -> "Files":
        """The same for a part of the images."""
        own = ids if self.names is None else {name for id_ in ids for name in self.names[id_]}
        return dataclasses.replace(self, used=sum(self.prefix + name not in self.unreadable for name in own))

    def __str__(self) -> str:
        """One line, with the first names of each kind."""
        parts = [f"{self.used:,} used"]
        if self.elsewhere:
            parts.append(f"{self.elsewhere:,} in other splits or slices")
        left_out = sum(tally.count for tally in self.skipped.values())
        rules = "; ".join(f"{tally.count:,} {rule}: {tally}" for rule, tally in sorted(self.skipped.items()))
        parts.append(f"{left_out:,} skipped" + (f" ({rules})" if rules else ""))
        unreadable = Tally.of(f"{name}: {reason}" for name, reason in self.unreadable.items())
        parts.append(f"{unreadable.count:,} unreadable" + (f" ({unreadable})" if unreadable.count else ""))
        notes = "".join(f"; {tally.count:,} {rule}: {tally}" for rule, tally in sorted(self.notes.items()))
        return f"{self.place}: {self.total:,} files: {', '.join(parts)}{notes}".replace("\n", "\\n")

    def json(self) -> dict[str, Any]:
        """The numbers, and the first hundred names of each kind."""
        told = {name: getattr(self, name) for name in ("place", "total", "used", "elsewhere")}
        unreadable = Tally.of(f"{name}: {reason}" for name, reason in self.unreadable.items())
        return told | {
            "skipped": {rule: dataclasses.asdict(tally) for rule, tally in sorted(self.skipped.items())},
            "unreadable": dataclasses.asdict(unreadable),
            "notes": {rule: dataclasses.asdict(tally) for rule, tally in sorted(self.notes.items())},
        }

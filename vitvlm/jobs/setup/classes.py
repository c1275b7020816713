"""Classes of a job's head: labelled data for training and evaluation are put under them by name."""

import dataclasses
from collections.abc import Mapping, Sequence

from vitvlm.core import classes
from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import sources
from vitvlm.data.errors import DataError
from vitvlm.data.sources import Source

FIELD = "config.data.class_names"
REMEDY = f"say which class each is by {FIELD}={{class: class of the %s}} (or a JSON file of that), or leave it out"


@dataclasses.dataclass(frozen=True)
class Scored:
    """A source under the classes of a head: its labels are places in the logits.

    Attributes:
      source: its `label_names` are those of the head.
      named: the classes that the source itself names, in order; the others cannot occur.
      note: how they were found, for the protocol; empty if there is nothing to say.
    """

    source: Source
    named: tuple[int, ...]
    note: str


@dataclasses.dataclass(frozen=True)
class Head:
    """The classes that a model's logits stand for, in order.

    Attributes:
      names: those of the training data, or what published weights say; None if they do not say.
      count: how many there are.
      whose: what has these classes, for messages.
      published: weights from elsewhere: a name may be written otherwise (see `core.classes.RULES`), which the protocol
        then says.
    """

    names: tuple[str, ...] | None
    count: int
    whose: str
    published: bool = False

    def score(self, source: Source) -> Scored:
        """Puts a labelled source under these classes.

        Raises DataError that lists the source's classes which the head does not have.
        """
        said = by_hand(source.renames)
        if not self.published:
            under = sources.placed(source, self.names, self.whose, REMEDY % "training")
            own = set(source.label_names)
            return Scored(under, tuple(place for place, name in enumerate(self.names) if name in own), said)
        places, note = find(source.label_names, self.names, self.count, source.name, self.whose, REMEDY % "weights")
        names = source.label_names if self.names is None else classes.distinct(self.names)
        if self.names is None and len(names) < self.count:
            names = unnamed(self.count)
        under = sources.Relabelled(source, names, places, {})
        return Scored(under, tuple(sorted(places)), "; ".join(filter(None, (said, note))))


def find(
    names: Sequence[str], known: Sequence[str] | None, count: int, where: str, whose: str, remedy: str
) -> tuple[list[int], str]:
    """Finds the place of each name among a head's classes, with a note about anything unusual in the matching.

    Args:
      known: the head's `count` classes; None if they have no names: then they are LABEL_0 and so on, or, if no name is
        one of these and there are as many, taken to be in the same order.
      where: what has the names, for messages.
      whose: what has the head: "the weights' classes".
      remedy: what to do about a name that is not found.

    Raises DataError that lists the names which are not found.
    """
    if known is None and not set(names) & set(unnamed(count)):
        if len(names) != count:
            raise DataError(f"{where}: {len(names)} classes, and {whose} are {count} without a name: {remedy}")
        if all(name.isdecimal() for name in names) and sorted(names, key=int) != list(names):
            raise DataError(
                f"{where}: {whose} have no names, and the data's ({classes.listed(names)}) are numbers in the order of "
                f"texts: which is which cannot be told; {remedy}, such as {{{names[0]!r}: 'LABEL_{int(names[0])}'}}"
            )
        return list(range(count)), f"{whose} have no names, taken to be in the data's order: UNVERIFIED"
    known = unnamed(count) if known is None else known
    found = classes.match(names, known)
    if found.missing or found.unclear:
        raise DataError(f"{where}: {sources.absent(found, names)} {whose} ({classes.listed(known)}); {remedy}")
    places = [found.places[name] for name in names]
    notes = [_by_rules(found, known)]
    if places != sorted(places):
        notes.append("classes matched by name, in another order")
    return places, "; ".join(filter(None, notes))


def renames(given: Mapping[str, str] | str | None, names: Sequence[str], where: str) -> dict[str, str]:
    """A section's own class_names, whose keys must be among the job's classes."""
    wanted = classes.mapping(given, where)
    for name in wanted:
        if name not in names:
            raise ConfigError(f"{where}: the job has no class {name!r}; {suggest(name, names)}")
    return wanted


def unnamed(count: int) -> tuple[str, ...]:
    """Names for classes without names: LABEL_0, LABEL_1, …"""
    return tuple(f"LABEL_{place}" for place in range(count))


def by_hand(renames: Mapping[str, str]) -> str:
    """A note that classes were renamed by the config; empty if none was."""
    return f"{len(renames)} classes named by {FIELD} ({_pairs(renames)})" if renames else ""


def _by_rules(found: classes.Matched, names: Sequence[str]) -> str:
    """A note of the names that are not the same to the letter, by rule."""
    notes = []
    for rule in classes.RULES:
        pairs = {name: names[found.places[name]] for name, by in found.rules.items() if by == rule != classes.EXACT}
        if pairs:
            notes.append(f"{len(pairs)} classes matched {rule} ({_pairs(pairs)})")
    return "; ".join(notes)


def _pairs(pairs: Mapping[str, str], most: int = 5) -> str:
    shown = [f"{name!r} = {other!r}" for name, other in pairs.items()]
    return ", ".join(shown[:most]) + ", …" * (len(shown) > most)

"""Matching of classes by name: finds each class of one list in another, and says by which rule it was found."""

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitvlm.core import files, json_texts
from vitvlm.core.config import ConfigError


def composed(name: str) -> str:
    """Returns the name in Unicode's composed form (NFC): one text is one name, though Macs write `é` as two characters.

    >>> composed("cafe\u0301") == "caf\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name)


def _plain(name: str) -> str:
    """Returns the name in lower case, with underscores and hyphens as spaces and one space between words."""
    return " ".join(composed(name).casefold().replace("_", " ").replace("-", " ").split())


# The forms of a name under each rule; two names are the same class if they have a form in common. Tried in turn.
RULES: Mapping[str, Callable[[str], set[str]]] = {
    "as they are": lambda name: {composed(name)},
    "ignoring case, _ and -": lambda name: {_plain(name)},
    "by a synonym between commas": lambda name: {_plain(part) for part in (name, *name.split(",")) if part.strip()},
}
EXACT, *_ = RULES


_NUMBER = re.compile(r"0*(\d+)(?:\.0*)?")  # 3, 03 and 3.0


@dataclasses.dataclass(frozen=True)
class Matched:
    """Names found in a list of known ones.

    Attributes:
      places: of each name that was found, its place in the list.
      rules: of each name that was found, the rule (see `RULES`).
      missing: names that are not in the list.
      unclear: a phrase for each name that cannot be told: it could be several known ones, or several names are one.
    """

    places: Mapping[str, int]
    rules: Mapping[str, str]
    missing: tuple[str, ...]
    unclear: tuple[str, ...]


def match(names: Sequence[str], known: Sequence[str], rules: Iterable[str] = RULES) -> Matched:
    """Finds each name in the list of known ones, by the first of the rules that finds it.

    A name that the list holds more than once is unclear; in the form that `distinct` gives it, it is found.
    """
    shown = distinct(known)
    places: dict[str, int] = {}
    found_by: dict[str, str] = {}
    unclear: list[str] = []
    left = list(dict.fromkeys(names))
    for rule in rules:
        forms: dict[str, set[int]] = {}
        for place, name in enumerate(known):
            for form in RULES[rule](name) | {composed(shown[place])}:
                forms.setdefault(form, set()).add(place)
        for name in list(left):
            candidates = sorted(set().union(*(forms.get(form, ()) for form in RULES[rule](name))))
            if candidates:
                left.remove(name)
            if len(candidates) > 1:
                unclear.append(f"{name!r} could be {' or '.join(repr(shown[place]) for place in candidates)}")
            elif candidates:
                places[name], found_by[name] = candidates[0], rule
    for place, count in Counter(places.values()).items():
        if count > 1:
            several = [repr(name) for name in names if places.get(name) == place]
            unclear.append(f"{' and '.join(several)} are both {shown[place]!r}")
    return Matched(places, found_by, tuple(left), tuple(unclear))


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, those that occur more than once told apart by their place: "crane (class 134)"."""
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name} (class {place})" for place, name in enumerate(names))


def alike(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of classes that may be one: their names differ in case, spaces, _ or -, or are one number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        number = _NUMBER.fullmatch(name.strip())
        groups.setdefault(f"number {number[1]}" if number else _plain(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names between commas, for a message; the rest counted."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest


def mapping(given: Mapping[str, str] | str | None, where: str) -> dict[str, str]:
    """The config's {class of the data: its name in the job}, given as such or as the path of a JSON file that holds it.

    Raises ConfigError that names the field for a file or a value that is none.
    """
    if isinstance(given, str):
        content = _read(given, where)
        where = f"{where}={given}"
    else:
        content = given or {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: is a {type(content).__name__}, not {{class of the data: its name in the job}}")
    for name, wanted in content.items():
        if not isinstance(name, str) or not isinstance(wanted, str):
            raise ConfigError(f"{where}: {name!r}: {wanted!r}: both are names of classes, so both are texts")
    return {composed(name): composed(wanted) for name, wanted in content.items()}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError if it has a name twice."""
    if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"{repeated[0]!r} is there twice")
    return dict(pairs)


def _read(path: str, where: str) -> Any:
    try:
        text = files.read_text(Path(path).expanduser(), files.LARGEST_JSON, "utf-8-sig")
        return json_texts.loads(text, _distinct)
    except (OSError, ValueError) as error:
        told = f"{error.strerror or error}" if isinstance(error, OSError) else f"is not JSON of distinct names: {error}"
        raise ConfigError(f"{where}: {path}: {told}; it holds {{class of the data: its name in the job}}") from None

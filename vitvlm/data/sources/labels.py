"""Labels as data sets write them: which field holds them, and which class each means."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vitvlm.core import files, json_texts
from vitvlm.core.classes import composed
from vitvlm.core.config import ConfigError, suggest
from vitvlm.data.errors import DataError

Written = str | tuple[str, ...]  # a label, or the several of a multi-label example


@dataclasses.dataclass(frozen=True)
class Labelling:
    """Rules for reading the labels of a data set; by default each kind of source uses its own.

    Attributes:
      field: the column or JSON field that holds the label; for webdataset also "cls", the member KEY.cls, and "" for no
        labels.
      separator: text between the classes in a column of a CSV file whose examples have several.
      label_names: the classes in the order of their index, or the path of a file of them: a name a line, or a JSON
        list. Labels are then these names or their indices, and nothing else; only names, where some of them are
        numbers other than their own indices. Without it the classes are collected.
    """

    field: str | None = None
    separator: str | None = None
    label_names: Sequence[str] | str = ()

    def names(self) -> tuple[str, ...]:
        """The classes that were given; empty if they are to be collected. Raises ConfigError."""
        names = _read(self.label_names) if isinstance(self.label_names, str) else self.label_names
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(f"label_names={self.label_names!r}: is not a list of names")
        names = [composed(name) for name in names]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ConfigError(f"label_names: names {repeated!r} twice")
        return tuple(names)


USUAL = Labelling()


class Classes:
    """Classes of a data set, which are found by labels as they are written.

    Attributes:
      names: in the order of their index.
      collected: whether they are those that were found, not given.
    """

    def __init__(self, names: Iterable[str], collected: bool = False):
        self.names = tuple(names)
        self.collected = collected
        self._places = {name: place for place, name in enumerate(self.names)}
        # Where "1" is the name of class 0, a label 1 cannot be told from the index of class 1.
        numbers = [(place, name) for place, name in enumerate(self.names) if _is_number(name)]
        self._by_index = not collected and all(int(name) == place for place, name in numbers)

    @classmethod
    def found(cls, labels: Iterable[Written]) -> "Classes":
        """Collects the classes that occur, sorted by name, or by number if they are whole numbers."""
        names = {name for label in labels for name in ((label,) if isinstance(label, str) else label)}
        return cls(sorted(names, key=lambda name: (len(name) if name.isdigit() else 0, name)), collected=True)

    def label(self, written: Written, where: str) -> int | Int[np.ndarray, " k"]:
        """Returns the index of a label, or the sorted indices of several. Raises DataError for an unknown class."""
        if isinstance(written, str):
            return self._place(written, where)
        return np.array(sorted({self._place(name, where) for name in written}), np.int32)

    def _place(self, name: str, where: str) -> int:
        """A name that is a number is that name if there is one, else an index."""
        if name in self._places:
            return self._places[name]
        if self._by_index and _is_number(name) and int(name) < len(self.names):
            return int(name)
        few = len(self.names) <= 20
        hint = suggest(name, self.names) if few else suggest(name, self.names).partition("there is")[0]
        raise DataError(
            f"{where}: label {name!r:.200} is none of the {len(self.names)} classes{'; ' * bool(hint)}{hint}"
        )


def written(value: Any, where: str, separator: str | None = None) -> Written | None:
    """A label as text, or several; None if there is none.

    Several are a list of names or whole numbers, which may be empty; or with a `separator`, the parts of a text. Spaces
    around a name do not count, NaN is no label, and 3.0 in JSON is 3, as a column of numbers with gaps has it.
    Raises DataError for anything else.
    """
    if separator is not None and isinstance(value, str):
        return tuple(name for part in value.split(separator) if (name := _name(part)))
    if isinstance(value, (list, tuple)):
        names = tuple(map(_name, value))
        if not all(names):
            raise DataError(f"{where}: is not a list of names or numbers: {value!r:.60}")
        return names
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if (name := _name(value)) is None:
        raise DataError(f"{where}: is neither a name nor a whole number nor a list of them: {value!r:.60}")
    return name or None


def _is_number(name: str) -> bool:
    """Tells whether a name is a number that could be the index of a class."""
    return name.isdecimal() and len(name) <= 20


def _name(value: Any) -> str | None:
    """A class as text, without spaces around it; None for what cannot be one."""
    if isinstance(value, str):
        return composed(value).strip()
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return None


def same_kind(labels: Iterable[tuple[str, Written]], where: str) -> bool:
    """Tells from (id, label) pairs whether every example has a list of labels; False if each has a single one.

    Raises DataError if they differ: one label is then written as a list of one.
    """
    first: dict[bool, str] = {}
    for name, label in labels:
        first.setdefault(isinstance(label, tuple), name)
    if len(first) > 1:
        raise DataError(
            f"{where}: the label of {first[True]!r} is a list, and that of {first[False]!r} is not: write a list for "
            'each, such as ["cat"] or []'
        )
    return True in first


def _read(path: str) -> list[str]:
    file = Path(path).expanduser()
    try:
        text = files.read_text(file, files.LARGEST_VOCABULARY, "utf-8-sig")
        if file.suffix != ".json":
            lines = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
            if "" in lines:
                raise ValueError(f"line {lines.index('') + 1} is empty, and a line's number is the class's")
            return lines
        content = json_texts.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"label_names={path}: cannot be read: {error}") from None
    if isinstance(content, dict) and set(content) == {str(i) for i in range(len(content))}:
        return [content[str(i)] for i in range(len(content))]
    return content

"""The tables of published layouts in docs/weights.md, and the cases that prove their rows.

A table whose first column is "layout" has a row for every layout: what `pretrained.load` makes of it, and what
`pretrained.save` writes. `published(name)` registers the one case of a row; `test_layouts.py` runs all.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

MANUAL = Path(__file__).parents[2] / "docs" / "weights.md"


@dataclasses.dataclass(frozen=True)
class Row:
    """One row. `read` and `written` are cells; what is quoted in them with ` is checked word by word."""

    layout: str
    read: str
    written: str

    @property
    def refused(self) -> tuple[str, ...]:
        """The words of the error with which loading refuses; nothing if it does not."""
        return tuple(quoted(self.read)) if self.read.startswith("refused") else ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The beginnings of names of tensors that loading leaves out, and says so."""
        return tuple(quoted(self.read.partition("left out:")[2]))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Weights in that layout, and what the reference makes of an input.

    Fields:
      path: what `pretrained.load` is given, with `fields`.
      call: the arguments of the model's call by name or place; expected: arrays by the name of our output's field,
        with dots for those inside. Nothing is run where nothing is expected.
    """

    path: Path
    call: tuple[Any, ...] = ()
    named: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    expected: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


CASES: dict[str, Callable[[Path], Layout]] = {}


def published(name: str) -> Callable[[Callable[[Path], Layout]], Callable[[Path], Layout]]:
    """Registers a case: a function that writes the layout into an empty folder."""

    def add(case: Callable[[Path], Layout]) -> Callable[[Path], Layout]:
        assert name not in CASES, f"{name}: has a case already"
        CASES[name] = case
        return case

    return add


def rows() -> list[Row]:
    """All rows of all tables of layouts."""
    found, inside = [], False
    for line in MANUAL.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            inside = False
        elif cells[0] == "layout":
            inside = True
        elif inside and not set(cells[0]) <= set("-:"):
            layout, read, written = cells
            found.append(Row(layout.replace("`", ""), read, written))
    return found


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)

"""Weight tables: which tensor of a foreign checkpoint is which of our parameters. One table reads and writes.

A row names one tensor (or several) on each side and the transform between them. `{i}` and `{j}` in the names stand for
layers, counted by the `facts` that a family takes from its configuration. Our side is the looped form of the parameters
("blocks_0/..."); `nn.stack.stack_blocks` makes the scanned form of it.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vitvlm.core import paths
from vitvlm.nn.positions import sincos_grid

Facts = Mapping[str, Any]
Arrays = tuple[np.ndarray, ...]


class TableError(ValueError):
    """A checkpoint that does not hold what the table says."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """`read(facts, *theirs)` gives our arrays, `write(facts, *ours)` theirs: a tuple each, inverse to each other."""

    read: Callable[..., Arrays]
    write: Callable[..., Arrays]


@dataclasses.dataclass(frozen=True)
class Row:
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    transform: Transform


def row(theirs: str | tuple[str, ...], ours: str | tuple[str, ...], transform: Transform) -> Row:
    """A row; a single name stands for a tuple of one."""
    return Row(*((names,) if isinstance(names, str) else names for names in (theirs, ours)), transform)


class Table:
    """Rows; tables are joined by `+`."""

    def __init__(self, *rows: Row):
        self.rows = rows

    def __add__(self, other: "Table") -> "Table":
        return Table(*self.rows, *other.rows)

    def read(self, tensors: Mapping[str, np.ndarray], facts: Facts) -> dict[str, Any]:
        """Our parameters from a checkpoint's tensors.

        Raises TableError if a tensor of the table is missing, or one of the checkpoint is in no row.
        """
        params, used = {}, set()
        for theirs, ours, transform in self._expanded(facts):
            for name in theirs:
                if name not in tensors:
                    raise TableError(
                        f"the checkpoint has no tensor {name!r}, which {' and '.join(ours) or 'a check'} needs"
                    )
            used.update(theirs)
            params.update(
                zip(ours, transform.read(facts, *(np.asarray(tensors[name]) for name in theirs)), strict=True)
            )
        if unread := sorted(set(tensors) - used):
            raise TableError(f"the checkpoint has {len(unread)} tensors that no row reads, {unread[0]!r} the first")
        return paths.unflatten(params)

    def write(self, params: Mapping[str, Any], facts: Facts) -> dict[str, np.ndarray]:
        """A checkpoint's tensors from our parameters: the inverse of `read`.

        Raises TableError if a parameter of the table is missing, or one of the model is in no row.
        """
        leaves, tensors, used = paths.flatten(params), {}, set()
        for theirs, ours, transform in self._expanded(facts):
            for name in ours:
                if name not in leaves:
                    raise TableError(f"the model has no parameter {name!r}, which {' and '.join(theirs)} needs")
            used.update(ours)
            tensors.update(
                zip(theirs, transform.write(facts, *(np.asarray(leaves[name]) for name in ours)), strict=True)
            )
        if unwritten := sorted(set(leaves) - used):
            raise TableError(
                f"the model has {len(unwritten)} parameters that no row writes, {unwritten[0]!r} the first"
            )
        return tensors

    def _expanded(self, facts: Facts) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], Transform]]:
        """The rows, once for each layer that they stand for."""
        for line in self.rows:
            letters = [letter for letter in ("i", "j") if any(f"{{{letter}}}" in name for name in line.theirs)]
            for layers in itertools.product(*(range(facts[letter]) for letter in letters)):
                at = dict(zip(letters, layers))
                theirs, ours = (tuple(name.format(**at) for name in names) for names in (line.theirs, line.ours))
                yield theirs, ours, line.transform


def _positions_read(facts: Facts, table: np.ndarray) -> Arrays:
    h, w = facts["grid"]
    if table.shape[:2] != (1, 1 + h * w):
        raise TableError(f"positions of shape {table.shape} do not fit a CLS token and a grid of {h}x{w}")
    return table[0, 0], table[0, 1:].reshape(h, w, -1)


def _fixed_table(facts: Facts, width: str) -> np.ndarray:
    table = sincos_grid(facts["grid"], facts[width]).reshape(-1, facts[width])
    return np.concatenate([np.zeros_like(table[:1]), table])[None]


def _fixed_read(facts: Facts, width: str, table: np.ndarray) -> Arrays:
    fixed = _fixed_table(facts, width)
    if table.shape != fixed.shape or np.abs(table.astype(np.float32) - fixed).max() > 1e-3:
        raise TableError("the checkpoint's positions are not the fixed sin-cos table: read them as learned")
    return ()


def fixed_positions(width: str) -> Transform:
    """[1, 1 + N, D], checked to be zero for CLS and the sin-cos table; no parameter of ours. D is `facts[width]`."""
    return Transform(
        read=lambda facts, table: _fixed_read(facts, width, table), write=lambda facts: (_fixed_table(facts, width),)
    )


same = Transform(read=lambda facts, x: (x,), write=lambda facts, x: (x,))
linear = Transform(read=lambda facts, x: (x.T,), write=lambda facts, x: (x.T,))  # [out, in], [in, out]
token = Transform(read=lambda facts, x: (x[0, 0],), write=lambda facts, x: (x[None, None],))  # [1, 1, D], [D]
conv_to_patch = Transform(  # [D, C, P, P], [P P C, D]
    read=lambda facts, x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
    write=lambda facts, x: (x.reshape(*facts["patch"], -1, x.shape[1]).transpose(3, 2, 0, 1),),
)
cls_and_grid = Transform(  # [1, 1 + N, D], ([D], [h, w, D])
    read=_positions_read,
    write=lambda facts, cls, grid: (np.concatenate([cls[None], grid.reshape(-1, cls.shape[0])])[None],),
)

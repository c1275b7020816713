"""Weight tables: which tensor of a foreign checkpoint is which of our parameters. One table reads and writes.

A row names one tensor (or several) on each side and the transform between them. `{i}` and `{j}` in the names stand for
layers, counted by the `facts` that a family takes from its configuration. Our side is the looped form of the parameters
("blocks_0/..."); `nn.stack.stack_blocks` makes the scanned form of it.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vitvlm.core import paths
from vitvlm.nn.positions import sincos_grid

LETTERS = ("i", "j")  # layers, in the names of a row
MARGIN = 100  # tensors: above this and twice what there is, what is missing is counted and not listed

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

    def read(
        self, tensors: Mapping[str, np.ndarray], facts: Facts, place: Callable[[np.ndarray], Any] = lambda x: x
    ) -> dict[str, Any]:
        """Our parameters from a checkpoint's tensors, each passed through `place` as soon as it is read.

        Raises TableError as `check_names` does, before anything is read.
        """
        self.check_names(tensors, facts)
        params: dict[str, Any] = {}
        for theirs, ours, transform in self._expanded(facts):
            arrays = transform.read(facts, *(np.asarray(tensors[name]) for name in theirs))
            params.update(zip(ours, map(place, arrays), strict=True))
        return paths.unflatten(params)

    def check_names(self, names: Collection[str], facts: Facts) -> None:
        """Raises TableError that lists every tensor of the table that is missing, and every one that is in no row.

        Takes time in proportion to the names that there are, whatever number of layers the facts claim.
        """
        needed = sum(len(line.theirs) * math.prod(facts[letter] for letter in _letters(line)) for line in self.rows)
        if needed > 2 * len(names) + MARGIN:
            counts = ", ".join(f"{letter} = {facts[letter]}" for letter in LETTERS if letter in facts)
            raise TableError(f"the config asks for {needed} tensors (layers: {counts}); there are {len(names)}")
        rows = [theirs for theirs, _, _ in self._expanded(facts)]
        _complain("the checkpoint", "tensor", rows, names, "that no row reads")

    def check_shapes(
        self, found: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]], facts: Facts
    ) -> None:
        """Compares shapes of tensors with those that parameters of the shapes `ours` would be written with.

        Raises TableError that lists every parameter that is not in `ours` or the other way round, and every tensor of
        another shape.
        """
        needed, held = (sum(map(math.prod, shapes.values())) for shapes in (ours, found))
        if needed > 2 * held + MARGIN**2:
            raise TableError(f"the config asks for {needed:,} parameters; the tensors hold {held:,} numbers")
        zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in ours.items()}  # no memory of their own
        wanted = self.write(paths.unflatten(zeros), facts)
        different = [
            f"{name} {tuple(found[name])}, not {tensor.shape}"
            for name, tensor in wanted.items()
            if tuple(found[name]) != tensor.shape
        ]
        if different:
            raise TableError(f"tensors of another shape than the config says: {'; '.join(different)}")

    def write(self, params: Mapping[str, Any], facts: Facts) -> dict[str, np.ndarray]:
        """A checkpoint's tensors from our parameters: the inverse of `read`.

        Raises TableError that lists every parameter of the table that is missing and every one in no row.
        """
        leaves, tensors = paths.flatten(params), {}
        rows = list(self._expanded(facts))
        _complain("the model", "parameter", [ours for _, ours, _ in rows], leaves, "that no row writes")
        for theirs, ours, transform in rows:
            tensors.update(
                zip(theirs, transform.write(facts, *(np.asarray(leaves[name]) for name in ours)), strict=True)
            )
        return tensors

    def _expanded(self, facts: Facts) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], Transform]]:
        """The rows, once for each layer that they stand for."""
        for line in self.rows:
            letters = _letters(line)
            for layers in itertools.product(*(range(facts[letter]) for letter in letters)):
                at = dict(zip(letters, layers))
                theirs, ours = (tuple(name.format(**at) for name in names) for names in (line.theirs, line.ours))
                yield theirs, ours, line.transform


def _letters(line: Row) -> list[str]:
    """The layers that a row's names count."""
    return [letter for letter in LETTERS if any(f"{{{letter}}}" in name for name in line.theirs)]


def _complain(whole: str, kind: str, rows: Sequence[tuple[str, ...]], present: Iterable[str], unused: str) -> None:
    """Raises TableError that lists what the rows need and is not there, and what is there and in no row."""
    wanted = dict.fromkeys(itertools.chain(*rows))
    present = set(present)
    missing, left = [name for name in wanted if name not in present], sorted(present - set(wanted))
    problems = [f"{whole} has no {kind} {', '.join(missing)}"] if missing else []
    problems += [f"{whole} has {kind}s {unused}: {', '.join(left)}"] if left else []
    if problems:
        raise TableError("; ".join(problems))


def _positions_read(facts: Facts, table: np.ndarray) -> Arrays:
    h, w = facts["grid"]
    if table.shape[:2] != (1, 1 + h * w):
        raise TableError(f"positions of shape {table.shape} do not fit a CLS token and a grid of {h}x{w}")
    return table[0, 0], table[0, 1:].reshape(h, w, -1)


def _fixed_table(facts: Facts, width: str) -> np.ndarray:
    table = sincos_grid(facts["grid"], facts[width]).reshape(-1, facts[width])
    return np.concatenate([np.zeros_like(table[:1]), table])[None]


def is_fixed_table(facts: Facts, width: str, table: np.ndarray) -> bool:
    """Whether positions [1, 1 + N, D] are zero for CLS and the sin-cos table; half precision is near enough."""
    h, w = facts["grid"]
    if table.shape != (1, 1 + h * w, facts[width]):
        return False
    return bool(np.abs(table.astype(np.float32) - _fixed_table(facts, width)).max() <= 1e-3)


def _fixed_read(facts: Facts, width: str, table: np.ndarray) -> Arrays:
    if not is_fixed_table(facts, width, table):
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

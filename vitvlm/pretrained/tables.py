"""Weight tables: which tensor of a foreign checkpoint is which of our parameters. One table reads and writes.

A row names one tensor (or several) on each side and the transform between them. A family's rows come from a generator
that reads like a list of them. Our side is the looped form of the parameters ("blocks_0/..."), which
`nn.stack.stack_blocks` makes the scanned form of.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vitvlm.core import paths
from vitvlm.core.placing import Stored
from vitvlm.pretrained.entries import Tensors

Arrays = tuple[np.ndarray, ...]
Shape = tuple[int, ...]

# A config that asks for more than twice what there is, and this much besides, is complained of by a number, not a list.
FEW_TENSORS = 100
FEW_NUMBERS = 10_000

MANY_NAMES = 8  # a longer list is cut

# Buffers that frameworks save beside the weights: counters, indices and masks, which follow from the config. Files
# differ in which they have; none says anything.
MEANINGLESS = frozenset({"num_batches_tracked", "position_ids", "relative_position_index", "attn_mask"})


class TableError(ValueError):
    """A checkpoint that does not hold what the table says."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """`read(*theirs)` gives our arrays, `write(*ours)` theirs: a tuple each, inverse to each other."""

    read: Callable[..., Arrays]
    write: Callable[..., Arrays]


@dataclasses.dataclass(frozen=True)
class Row:
    """Tensors of theirs and parameters of ours, in a collection of the model's variables, that are the same thing."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    transform: Transform
    collection: str = "params"

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(f"{self.collection}/{name}" for name in self.ours)


def row(
    theirs: str | tuple[str, ...], ours: str | tuple[str, ...], transform: Transform, collection: str = "params"
) -> Row:
    """A row; a single name stands for a tuple of one."""
    return Row(*((names,) if isinstance(names, str) else names for names in (theirs, ours)), transform, collection)


def under(theirs: str, ours: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of a part of a model, with the prefixes that it has in the whole."""
    for each in rows:
        yield dataclasses.replace(
            each,
            theirs=tuple(theirs + name for name in each.theirs),
            ours=tuple(ours + name for name in each.ours),
        )


class Table:
    """Rows that read a checkpoint and write it."""

    def __init__(self, rows: Iterable[Row], at_most: int | None = None):
        """`rows` may be endless: raises TableError as soon as they need more than `at_most` tensors."""
        self.rows: list[Row] = []
        needed = 0
        for each in rows:
            needed += len(each.theirs)
            if at_most is not None and needed > at_most:
                raise TableError(f"the config asks for more than {at_most} tensors, far more than there are")
            self.rows.append(each)

    @classmethod
    def reading(cls, rows: Iterable[Row], names: Collection[str]) -> "Table":
        """Makes the table that reads a checkpoint with tensors of these names; tensors in MEANINGLESS are optional.

        The number of rows is limited by that of the names, so a config with an absurd number of layers does no harm.

        Raises TableError, which lists the tensors that rows need and the checkpoint lacks, and those that no row reads.
        """
        table = cls(rows, at_most=2 * len(names) + FEW_TENSORS)
        table.rows = [each for each in table.rows if not all(map(is_meaningless, each.theirs))]
        wanted = dict.fromkeys(itertools.chain(*(each.theirs for each in table.rows)))
        present = {name for name in names if not is_meaningless(name)}
        missing, left = [name for name in wanted if name not in present], sorted(present - wanted.keys())
        if missing or left:
            problems = [f"the checkpoint has no tensor {listed(missing)}"] if missing else []
            problems += [f"the checkpoint has tensors that no row reads: {listed(left)}"] if left else []
            raise TableError("; ".join(problems + _prefixed(missing, left)))
        return table

    def check_shapes(self, found: Mapping[str, Shape], ours: Mapping[str, Shape]) -> None:
        """Compares shapes of tensors with those that variables of the shapes `ours` would be written with.

        Args:
          found: of the tensors, by name; ours: of the model's variables, by path ("params/head/kernel").

        Raises TableError that lists variables that are not in `ours` or the other way round, and tensors of another
        shape.
        """
        needed, held = (sum(map(math.prod, shapes.values())) for shapes in (ours, found))
        if needed > 2 * held + FEW_NUMBERS:
            raise TableError(f"the config asks for {needed:,} parameters; the tensors hold {held:,} numbers")
        zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in ours.items()}  # no memory of their own
        different = [
            f"{name} {tuple(found[name])}, not {tensor.shape}"
            for name, tensor in self._written(zeros)
            if tuple(found[name]) != tensor.shape
        ]
        if different:
            raise TableError(f"tensors of another shape than the config says: {listed(different, '; ')}")

    def read(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The model's variables, {"params": …}, on the host: views of the tensors where the transforms allow it."""
        leaves: dict[str, np.ndarray] = {}
        for each in self.rows:
            leaves |= zip(each.paths, _read(each, tensors), strict=True)
        return paths.unflatten(leaves)

    def opened(self, tensors: Tensors, shapes: Mapping[str, Shape]) -> dict[str, Any]:
        """The model's variables, {"params": …}, as lazy arrays: each reads its row's tensors where it is used.

        Args:
          shapes: of the variables, by path, which `check_shapes` has found to fit.

        Raises TableError for a tensor that is only checked, which is done now.
        """
        leaves: dict[str, Stored] = {}
        for each in self.rows:
            if not each.ours:
                _read(each, tensors)
            for i, path in enumerate(each.paths):
                first = each.theirs[0]
                read = functools.partial(_read_one, each, tensors, i)
                leaves[path] = Stored(tuple(shapes[path]), tensors.entries[first].dtype, read, origin=first)
        return paths.unflatten(leaves)

    def write(self, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A checkpoint's tensors: the inverse of `read`.

        Raises TableError that lists the variables of the table that are missing and those that are in no row.
        """
        return dict(self._written(paths.flatten(variables)))

    def _written(self, leaves: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields each tensor by name; of lazy ones, no two rows are held at a time."""
        wanted = dict.fromkeys(itertools.chain(*(each.paths for each in self.rows)))
        missing, left = [path for path in wanted if path not in leaves], sorted(leaves.keys() - wanted.keys())
        if missing or left:
            problems = [f"the model has no parameter {listed(missing)}"] if missing else []
            problems += [f"the model has parameters that no row writes: {listed(left)}"] if left else []
            raise TableError("; ".join(problems))
        for each in self.rows:
            arrays = each.transform.write(*(np.asarray(leaves[path]) for path in each.paths))
            yield from zip(each.theirs, arrays, strict=True)


def _read(each: Row, tensors: Mapping[str, np.ndarray]) -> Arrays:
    return each.transform.read(*(np.asarray(tensors[name]) for name in each.theirs))


def _read_one(each: Row, tensors: Mapping[str, np.ndarray], i: int) -> np.ndarray:
    return _read(each, tensors)[i]


def is_meaningless(name: str) -> bool:
    """Tells whether a tensor is one of MEANINGLESS, under any prefix."""
    return name.rpartition(".")[2] in MEANINGLESS


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """The names, or the first of many and how many there are."""
    if len(names) <= MANY_NAMES:
        return separator.join(names)
    return f"{separator.join(names[:MANY_NAMES])}{separator}… ({len(names):,} in all)"


def _prefixed(missing: Sequence[str], left: Sequence[str]) -> list[str]:
    """Remarks that most missing tensors are there under a common prefix, or without the one that rows expect."""
    for names, others, remark in (
        (missing, left, 'most of these begin with "{}" in the checkpoint'),
        (left, missing, 'most of these lack the prefix "{}" in the checkpoint'),
    ):
        wanted = set(names)
        prefixes = collections.Counter(
            other[:end] for other in others for end in _ends_of_parts(other) if other[end:] in wanted
        )
        if prefixes and 2 * prefixes.most_common(1)[0][1] > len(names):
            return [remark.format(prefixes.most_common(1)[0][0])]
    return []


def _ends_of_parts(name: str) -> list[int]:
    """Returns the places after each dot: 2 and 4 for "a.b.weight"."""
    return [i + 1 for i, letter in enumerate(name) if letter == "."]

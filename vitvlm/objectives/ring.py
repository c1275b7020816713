"""Reductions over all pairs of rows and columns of a batch, one block of pairs at a time, on one device or many.

Each device keeps its rows, and the columns go round the ring of devices, so that each device sees every column once
and none ever holds [B, B] numbers (Zhai et al. 2023, section 3.3). What is summed for a column travels with it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from vitvlm.core.config import ConfigError, suggest

Tree = Any


class Side(NamedTuple):
    """One half (all rows, or all columns) of b pairs."""

    embedding: Float[Array, "b D"]
    pair: Int[
        Array, "b"
    ]  # the number of the pair in the whole batch: equal for a row and a column that belong together
    mask: Float[Array, "b"]


# (rows, columns, row totals, column totals) -> totals to which the pairs of these rows and columns are added.
Fold = Callable[[Side, Side, Tree, Tree], tuple[Tree, Tree]]


def fold_pairs(
    fold: Fold,
    rows: Side,
    columns: Side,
    row_totals: Tree,
    column_totals: Tree,
    axes: tuple[str, ...],
    block: int | None,
) -> tuple[Tree, Tree]:
    """Folds every row with every column of all devices; called on one device's b rows and columns, see `over_devices`.

    Totals are trees of arrays [b, …] that vary over `axes`. Returns those of this device's rows and of its columns.
    Nothing of a block of pairs is kept for the backward pass, which computes it again. What it keeps is each
    chunk of columns as it came by, [B, D] in all, and the column totals before each block, [B, b / block].

    Args:
      fold: adds a block of pairs to the totals. It must ignore pairs in which a mask is 0.
      axes: mesh axes over which the batch is split; none for a single device.
      block: rows that are folded at a time with the b columns of a chunk; None: all b. Any number does.
    """
    size = len(rows.mask)
    fold = jax.checkpoint(fold)
    if block is not None and block < size:
        fold = _scanned(fold)
        rows, row_totals = jax.tree.map(lambda leaf: _cut(leaf, block), (rows, row_totals))

    devices = jax.lax.axis_size(axes)

    def pass_on(tree: Tree) -> Tree:
        neighbours = [(device, (device + 1) % devices) for device in range(devices)]
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axes, neighbours), tree)

    def step(carry: Tree, _: None) -> tuple[Tree, None]:
        columns, row_totals, column_totals = carry
        columns, column_totals = pass_on((columns, column_totals))
        return (columns, *fold(rows, columns, row_totals, column_totals)), None

    row_totals, column_totals = fold(rows, columns, row_totals, column_totals)
    if devices > 1:
        carry = (columns, row_totals, column_totals)
        (_, row_totals, column_totals), _ = jax.lax.scan(step, carry, length=devices - 1)
        column_totals = pass_on(column_totals)  # the last step of the round: home
    if block is not None and block < size:
        row_totals = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], row_totals)
    return row_totals, column_totals


def over_devices(
    function: Callable[..., Tree], mesh: Mesh | None, axes: tuple[str, ...], block: int | None
) -> Callable[..., Tree]:
    """`function(*arrays of one device) -> scalars that all devices share`, as a function of the whole batch's arrays.

    Arrays [B, …] are split over `axes`; scalars are the same everywhere. Without a mesh it is the function itself.
    Raises ConfigError for axes that the mesh has not, a batch that they do not divide, or a block below 1.
    """
    if block is not None and block < 1:
        raise ConfigError(f"block: {block}; it counts the rows of a block of pairs: at least 1, or None for all")
    if mesh is None:
        if axes:
            raise ConfigError(f"axes: {axes} need a mesh; give it, or leave the axes out on a single device")
        return function
    for axis in axes:
        if axis not in mesh.shape:
            raise ConfigError(f"axes: the mesh has no axis {axis!r}; {suggest(axis, mesh.shape)}")
    parts = math.prod(mesh.shape[axis] for axis in axes)

    def on_device(*arrays: Array) -> Tree:
        # Cast once here: a shared scalar would have its gradient summed over the devices after every block.
        return function(*(array if array.ndim else jax.lax.pcast(array, axes, to="varying") for array in arrays))

    def on_batch(*arrays: Array) -> Tree:
        arrays = tuple(jnp.asarray(array) for array in arrays)
        for array in arrays:
            if array.ndim and len(array) % parts:
                raise ConfigError(
                    f"a batch of {len(array)} does not divide over the {parts} devices of the axes {axes}"
                )
        specs = tuple(PartitionSpec(axes) if array.ndim else PartitionSpec() for array in arrays)
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(*arrays)

    return on_batch


def sides(
    image: Float[Array, "b D"], text: Float[Array, "b D"], mask: Float[Array, "b"], axes: tuple[str, ...]
) -> tuple[Side, Side]:
    """One device's images as rows and texts as columns."""
    first = jax.lax.axis_index(axes) * len(mask) if axes else 0
    pair = first + jnp.arange(len(mask))
    return Side(image, pair, mask), Side(text, pair, mask)


def _scanned(fold: Fold) -> Fold:
    """The same for rows and row totals [blocks, block, …]."""

    def scanned(rows: Side, columns: Side, row_totals: Tree, column_totals: Tree) -> tuple[Tree, Tree]:
        def step(column_totals: Tree, some: tuple[Side, Tree]) -> tuple[Tree, Tree]:
            row_totals, column_totals = fold(some[0], columns, some[1], column_totals)
            return column_totals, row_totals

        column_totals, row_totals = jax.lax.scan(step, column_totals, (rows, row_totals))
        return row_totals, column_totals

    return scanned


def _cut(leaf: Array, block: int) -> Array:
    """Reshapes [b, …] to [blocks, block, …], padded with zeros, which are rows of mask 0."""
    missing = -len(leaf) % block
    leaf = jnp.pad(leaf, ((0, missing), *((0, 0) for _ in leaf.shape[1:])))
    return leaf.reshape(-1, block, *leaf.shape[1:])

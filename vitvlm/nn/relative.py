"""Positions inside attention: what parts of `Attention.positional` are, and those that add a bias to the scores."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vitvlm.nn.patches import Pair
from vitvlm.nn.positions import resample_grid
from vitvlm.nn.roles import Role, Roles

Param = Callable[..., Array]  # `self.param` of the module that has the part: its parameters are the module's own


class Positional:
    """A part of `Attention.positional`: rotates queries and keys, or adds a bias to the scores, or both.

    Parts are frozen dataclasses, not modules; `roles` are those of their parameters, which lie beside the attention's.
    """

    roles: ClassVar[Roles] = ()

    def rotate(
        self, query: Float[Array, "B K N d"], key: Float[Array, "B Kv N d"], positions: Array
    ) -> tuple[Float[Array, "B K N d"], Float[Array, "B Kv N d"]]:
        """Returns queries and keys at their positions, [B, N] or [B, N, axes]. By default they stay as they are."""
        return query, key

    def bias(
        self, param: Param, query: Float[Array, "B K N d"], places: Int[Array, "N"], key_places: Int[Array, "M"]
    ) -> Float[Array, "#B K N M"] | None:
        """Returns what is added to the scores, None by default.

        Args:
          query: before any rotation; places, key_places: of the queries and of the keys in the sequence.
        """
        return None


@dataclasses.dataclass(frozen=True)
class RelativeTable(Positional):
    """A learned number per head and offset of rows and columns, for windows (Liu et al. 2021, equation 4).

    Attributes:
      heads: K.
      window: side of the window that the table is for, of (2 window - 1)^2 offsets; side: that of the window at hand,
        which may be smaller and uses the table's middle.
    """

    roles: ClassVar[Roles] = (
        (
            "relative_positions",
            Role("table", resample=lambda table, shape: resample_relative_positions(table, _window(shape[0]))),
        ),
    )

    heads: int
    window: int
    side: int
    param_dtype: DTypeLike = jnp.float32

    def bias(self, param: Param, query: Array, places: Array, key_places: Array) -> Float[Array, "1 K T T"]:
        init = nn.initializers.truncated_normal(0.02)
        table = param("relative_positions", init, ((2 * self.window - 1) ** 2, self.heads), self.param_dtype)
        return table[relative_position_index(self.side, self.window)].transpose(2, 0, 1)[None]


@dataclasses.dataclass(frozen=True)
class RelativeBuckets(Positional):
    """A learned number per head and bucket of distances (T5: Raffel et al. 2020, section 2.1).

    Near offsets have a bucket each, far ones share logarithmically wider ones up to max_distance.

    Attributes:
      heads: K; buckets: how many; both_ways: whether keys behind the query have half of them (an encoder), or none.

    All layers of a T5 share one: the model calls `bias` itself and passes the result as `Call.bias`.
    """

    roles: ClassVar[Roles] = (("relative_buckets", Role("table")),)

    heads: int
    buckets: int = 32
    max_distance: int = 128
    both_ways: bool = True
    param_dtype: DTypeLike = jnp.float32

    def bias(
        self, param: Param, query: Array | None, places: Int[Array, "N"], key_places: Int[Array, "M"]
    ) -> Float[Array, "1 K N M"]:
        init = nn.initializers.normal(1.0)
        table = param("relative_buckets", init, (self.buckets, self.heads), self.param_dtype)
        buckets = self.bucket(key_places[None, :] - places[:, None])
        return jnp.take(table, buckets, axis=0).transpose(2, 0, 1)[None]

    def bucket(self, offset: Int[Array, "N M"]) -> Int[Array, "N M"]:
        """The bucket of each offset, the key's place minus the query's."""
        buckets = self.buckets // 2 if self.both_ways else self.buckets
        first = jnp.where(offset > 0, buckets, 0) if self.both_ways else 0
        distance = jnp.abs(offset) if self.both_ways else jnp.maximum(-offset, 0)
        near = buckets // 2
        ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / near) / math.log(self.max_distance / near)
        far = jnp.minimum(near + (ratio * (buckets - near)).astype(jnp.int32), buckets - 1)
        return first + jnp.where(distance < near, distance, far)


@dataclasses.dataclass(frozen=True)
class DecomposedRelative(Positional):
    """A query's product with a learned vector per offset of rows, plus that per offset of columns (MViTv2, SAM).

    Attributes:
      grid: (h, w) of the tokens at hand; table: that of the parameters, [2h - 1, d] and [2w - 1, d]; by default `grid`.
        Tables of another grid are resampled linearly.
    """

    roles: ClassVar[Roles] = (
        (
            "relative_(rows|columns)",
            Role("table", resample=lambda table, shape: resample_offsets(table, shape[0])),
        ),
    )

    grid: Pair
    table: Pair | None = None
    param_dtype: DTypeLike = jnp.float32

    def bias(
        self, param: Param, query: Float[Array, "B K N d"], places: Array, key_places: Array
    ) -> Float[Array, "B K N N"]:
        B, K, N, d = query.shape
        h, w = self.grid
        query = query.reshape(B, K, h, w, d)

        def vectors(name: str, size: int, table_size: int) -> Float[Array, "size size d"]:
            offsets = 2 * table_size - 1
            table = param(f"relative_{name}", nn.initializers.zeros_init(), (offsets, d), self.param_dtype)
            table = resample_offsets(table, 2 * size - 1)
            places = np.arange(size)
            return table[places[:, None] - places[None, :] + size - 1].astype(query.dtype)

        rows, columns = self.table or self.grid
        by_row = jnp.einsum("BKhwd,hrd->BKhwr", query, vectors("rows", h, rows))
        by_column = jnp.einsum("BKhwd,wcd->BKhwc", query, vectors("columns", w, columns))
        return (by_row[..., :, None] + by_column[..., None, :]).reshape(B, K, N, N)


def resample_offsets(table: Float[Array, "old d"], count: int) -> Float[Array, "new d"]:
    """A table of offsets brought to `count` of them, linearly, as `interpolate(mode="linear")` of PyTorch does."""
    if len(table) == count:
        return table
    places = np.clip((np.arange(count) + 0.5) * len(table) / count - 0.5, 0, len(table) - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, len(table) - 1)
    part = jnp.asarray(places - low, jnp.float32)[:, None]
    wide = table.astype(jnp.float32)
    return (wide[low] * (1 - part) + wide[high] * part).astype(table.dtype)


def relative_position_index(window: int, table_window: int) -> Int[np.ndarray, "T T"]:
    """The row, in a table of relative positions for windows of side `table_window`, of each query and key of a window.

    The table goes through row offsets, then column offsets (query's minus key's), from -(table_window - 1) on.
    """
    rows, columns = np.divmod(np.arange(window * window), window)

    def offsets(places: Int[np.ndarray, "T"]) -> Int[np.ndarray, "T T"]:
        return places[:, None] - places[None, :] + table_window - 1

    return offsets(rows) * (2 * table_window - 1) + offsets(columns)


def resample_relative_positions(table: Float[Array, "old K"], window: int) -> Float[Array, "new K"]:
    """A table of relative positions for another window: of (2 window - 1)^2 rows, bicubic as in `resample_grid`.

    Raises ValueError if the table is not that of a square window.
    """
    side, new = (2 * each - 1 for each in (_window(len(table)), window))
    return resample_grid(table.reshape(side, side, -1), (new, new)).reshape(new * new, -1)


def _window(rows: int) -> int:
    """Returns the side of the window whose table of relative positions has `rows` rows."""
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0:
        raise ValueError(f"a table of {rows} relative positions does not have (2 window - 1)^2 rows")
    return (side + 1) // 2

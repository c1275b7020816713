"""Attention in windows that shift from block to block (Swin: Liu et al. 2021, section 3.2)."""

import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vitvlm.nn.attention import Attention
from vitvlm.nn.patches import Pair, patchify, unpatchify
from vitvlm.nn.positions import resample_grid
from vitvlm.nn.roles import Role, Roles


class WindowAttention(Attention, kw_only=True):
    """Self-attention within windows, with a learned bias per head and relative position (equation 4).

    Fields, besides those of `Attention`:
      grid: (h, w) of the tokens.
      window: side of a window, which so has T = window * window tokens.
      shifted: whether the windows are moved by half their side, down and to the right. Those that lie over the border
        go on at the other side; only what is together in the image sees each other.
      always_partition: by default the window of a grid that it covers in any direction is as large as the grid's
        shorter side, and is not shifted. If always_partition, it stays, the grid is padded to it, and it is shifted.

    Where the window does not divide the grid, zeros are added below and to the right, after the block's norm; they are
    looked at like tokens, as the reference does. The bias is the parameter `relative_positions` [(2 window - 1)^2, K];
    smaller windows use its middle. The captured weights are [B * windows, K, T, T]: image by image, windows row by row.

    Raises ValueError for a mask: windows have their own.
    """

    roles: ClassVar[Roles] = (
        (
            "relative_positions",
            Role("table", resample=lambda table, shape: resample_relative_positions(table, _window(shape[0]))),
        ),
        *Attention.roles,
    )

    grid: Pair
    window: int
    shifted: bool = False
    always_partition: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], mask: None = None, train: bool = False, capture: bool = False
    ) -> tuple[Float[Array, "B N D"], Float[Array, "windows K T T"] | None]:
        if mask is not None:
            raise ValueError("attention in windows takes no mask: it has its own")
        B, N, D = x.shape
        h, w = self.grid
        window, shift = self.window, self.window // 2 if self.shifted else 0
        if min(h, w) <= window and not self.always_partition:
            window, shift = min(h, w), 0

        init = nn.initializers.truncated_normal(0.02)
        table = self.param("relative_positions", init, ((2 * self.window - 1) ** 2, self.heads), self.param_dtype)
        bias = table[relative_position_index(window, self.window)].transpose(2, 0, 1)[None]

        maps = jnp.pad(x.reshape(B, h, w, D), [(0, 0), (0, -h % window), (0, -w % window), (0, 0)])
        padded = maps.shape[1:3]
        if shift:
            maps = jnp.roll(maps, (-shift, -shift), axis=(1, 2))
            mask = jnp.tile(shift_mask(padded, window, shift), (B, 1, 1))[:, None]
        y, weights = super().__call__(partition(maps, window), mask=mask, bias=bias, train=train, capture=capture)
        maps = join(y, padded, window)
        if shift:
            maps = jnp.roll(maps, (shift, shift), axis=(1, 2))
        return maps[:, :h, :w].reshape(B, N, D), weights


def partition(maps: Float[Array, "B h w D"], window: int) -> Float[Array, "windows T D"]:
    """Cuts maps into windows of T = window * window tokens: image by image, row by row.

    Raises ValueError if the window does not divide the map.
    """
    return patchify(maps, (window, window)).reshape(-1, window * window, maps.shape[-1])


def join(windows: Float[Array, "windows T D"], grid: Pair, window: int) -> Float[Array, "B h w D"]:
    """Puts windows back into maps of `grid` tokens: the inverse of `partition`."""
    rows, columns = grid[0] // window, grid[1] // window
    patches = windows.reshape(-1, rows * columns, window * window * windows.shape[-1])
    return unpatchify(patches, (rows, columns), (window, window))


def shift_mask(grid: Pair, window: int, shift: int) -> Bool[Array, "windows T T"]:
    """Mask of the token pairs that may attend to each other in the windows of a map that was rolled by `shift`.

    Rolling brings `shift` rows and columns round from the opposite side of the map; they are not neighbours of the
    other tokens in their window, so attention between the two parts is masked.
    """
    rows, columns = (np.arange(size) >= size - shift for size in grid)
    side = jnp.asarray(2 * rows[:, None] + columns, jnp.float32)
    sides = partition(side[None, :, :, None], window)[..., 0]
    return sides[:, :, None] == sides[:, None, :]


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

"""Position embeddings of patches: 2-D sin-cos tables, learned tables, and their resampling to another grid."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vitvlm.nn.patches import Pair
from vitvlm.nn.resampling import bucket_weights, cubic_weights, resample
from vitvlm.nn.roles import Role, Roles


class PositionTable(nn.Module):
    """One vector per patch of a grid, and one per token before them: learned, or the fixed sin-cos table.

    Fields:
      grid: (h, w) of the table; another grid is served by bicubic resampling, with `antialias` or without, or with
        `buckets` by the vector of the part of the table that a place begins in.
      prefix: names of the R tokens before the patches that have a place, such as ("cls",). Their learned positions are
        parameters of these names; their sin-cos positions are zero.
    """

    roles: ClassVar[Roles] = (
        ("grid", Role("table", resample=lambda table, shape: resample_grid(table, shape[:2]))),
        ("cls|distillation", Role("table")),
    )

    kind: Literal["learned", "sincos"]
    grid: Pair
    width: int
    prefix: tuple[str, ...] = ()
    antialias: bool = False
    param_dtype: DTypeLike = jnp.float32
    buckets: bool = False

    @nn.compact
    def __call__(self, grid: Pair) -> tuple[Float[Array, "N D"], Float[Array, "R D"]]:
        """The table of `grid`, row by row, and the vectors of the tokens before the patches."""
        if self.kind == "learned":
            init = nn.initializers.normal(0.02)
            table = self.param("grid", init, (*self.grid, self.width), self.param_dtype)
            vectors = [self.param(name, init, (self.width,), self.param_dtype) for name in self.prefix]
            before = jnp.array(vectors, self.param_dtype).reshape(-1, self.width)
        else:
            table = jnp.asarray(sincos_grid(self.grid, self.width))
            before = jnp.zeros((len(self.prefix), self.width), table.dtype)
        return resample_grid(table, grid, self.antialias, self.buckets).reshape(-1, self.width), before


class FlexiblePositions(nn.Module):
    """A learned table of a grid, resampled to the grid of each image of a batch: see `resample_each`."""

    roles: ClassVar[Roles] = PositionTable.roles

    grid: Pair
    width: int
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, grids: Int[Array, "B 2"], count: int) -> Float[Array, "B N D"]:
        """The positions of N = `count` places in each image."""
        init = nn.initializers.normal(self.width**-0.5)
        table = self.param("grid", init, (*self.grid, self.width), self.param_dtype)
        return resample_each(table, grids, count)


def sincos_grid(grid: Pair, width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed 2-D positions [h, w, D], float32, as MAE has them (He et al. 2022; the code of its authors).

    The first half of the channels encodes the COLUMN, the second the row; each half is sines, then cosines, of
    the position times temperature^(-4i/D), i < D/4.

    Raises ValueError if the width is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4, got {width}: change the width or positions")
    frequencies = temperature ** (-np.arange(width // 4) / (width // 4))

    def encode(count: int) -> np.ndarray:
        angles = np.arange(count)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    h, w = grid
    columns = np.broadcast_to(encode(w)[None, :], (h, w, width // 2))
    rows = np.broadcast_to(encode(h)[:, None], (h, w, width // 2))
    return np.concatenate([columns, rows], axis=-1).astype(np.float32)


def resample_each(table: Float[Array, "h w D"], grids: Int[Array, "B 2"], count: int) -> Float[Array, "B N D"]:
    """A table of positions resampled to the grid of each image, row by row, for N = `count` places.

    Equal to PyTorch's `interpolate(mode="bilinear", align_corners=False, antialias=True)`: linear, and wider where the
    table shrinks. Places behind an image's own, which are padding, have its first position.
    """
    places, grids = jnp.arange(count), jnp.maximum(grids, 1)  # a row of padding in a batch has none
    rows, columns = grids[:, :1], grids[:, 1:]
    at = jnp.where(places < rows * columns, places, 0)  # [B, N]
    h, w, _ = table.shape
    by_row, by_column = _linear_weights(at // columns, h, rows), _linear_weights(at % columns, w, columns)
    wide = table.astype(jnp.float32)
    resampled = jnp.einsum("BNh,BNw,hwD->BND", by_row, by_column, wide, precision=jax.lax.Precision.HIGHEST)
    return resampled.astype(table.dtype)


def _linear_weights(places: Int[Array, "B N"], size: int, new_sizes: Int[Array, "B 1"]) -> Float[Array, "B N size"]:
    """Each sample of a resampled axis as weights of the old ones, with antialias."""
    step = size / new_sizes.astype(jnp.float32)
    centres = (places + 0.5) * step - 0.5
    distance = jnp.abs(jnp.arange(size) - centres[..., None])
    weights = jnp.maximum(1 - distance / jnp.maximum(step, 1.0)[..., None], 0)
    return weights / weights.sum(axis=-1, keepdims=True)


def resample_grid(
    table: Float[Array, "h w D"], grid: Pair, antialias: bool = False, buckets: bool = False
) -> Float[Array, "h2 w2 D"]:
    """Bicubic resampling of a table of positions, equal to PyTorch's
    `interpolate(mode="bicubic", align_corners=False, antialias=antialias)`.

    Without antialias the cubic has a = -0.75 and four taps, and the border repeats; with it, a = -0.5, and the
    support grows with the step when the table shrinks. `jax.image.resize` has neither of the two. `buckets` is
    `resampling.bucket_weights`.
    """
    h, w, _ = table.shape
    if (h, w) == grid:
        return table
    sizes = zip((h, w), grid)
    rows, columns = (bucket_weights(n, m) if buckets else cubic_weights(n, m, antialias) for n, m in sizes)
    return resample("Hh,Ww,hwD->HWD", rows, columns, table)

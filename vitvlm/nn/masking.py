"""Masks of a masked autoencoder (He et al. 2022, section 3 and figure 6): random, block and grid masking.

All three are functions of uniform noise [B, N] in [0, 1), so the same noise gives the same mask anywhere. Each turns
the noise into an order of the patches, first those to keep; the number kept is fixed by the grid and the ratio alone.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitvlm.core import config
from vitvlm.nn.patches import Pair


@flax.struct.dataclass
class Masking:
    """Masks of a batch of images with N patches each, n of them visible.

    Fields:
    keep [B, n]: indices of the visible patches, in the order in which the encoder sees them.
    restore [B, N]: place of each patch in (visible, masked) order, so `ordered[restore]` is the patches' own order.
    mask [B, N]: 1 where a patch is masked, 0 where it is kept.
    """

    keep: Int[Array, "B n"]
    restore: Int[Array, "B N"]
    mask: Float[Array, "B N"]


def make_masking(kind: str, noise: Float[Array, "B N"], grid: Pair, ratio: float) -> Masking:
    """Masks `ratio` of the patches of each example: int(N (1 - ratio)) are kept.

    Args:
      kind: "random"; "block" (rectangles, as in BEiT); or "grid" (one patch of each s x s square is kept, for
        ratios 1 - 1/s^2: 0.75, 0.889, 0.9375 ...).
      noise: uniform in [0, 1). For "random" only its order counts.

    Raises ConfigError for an unknown kind, a ratio outside [0, 1), one that keeps no patch, or one that "grid"
    cannot give.
    """
    if kind not in KINDS:
        raise config.ConfigError(f"model.masking: no masking {kind!r}; {config.suggest(kind, KINDS)}")
    h, w = grid
    if noise.shape[1] != h * w:
        raise ValueError(f"noise for {noise.shape[1]} patches, but the grid {h}x{w} has {h * w}")
    kept = count_kept(kind, grid, ratio)
    order = jnp.argsort(KINDS[kind](noise, grid, h * w - kept), axis=1)
    restore = jnp.argsort(order, axis=1)
    return Masking(keep=order[:, :kept], restore=restore, mask=(restore >= kept).astype(jnp.float32))


def count_kept(kind: str, grid: Pair, ratio: float) -> int:
    """Returns how many patches of a grid stay visible at a mask ratio; raises ConfigError as `make_masking` does."""
    h, w = grid
    if not 0 <= ratio < 1:
        raise config.ConfigError(f"model.mask_ratio: {ratio} is not in [0, 1)")
    if kind == "grid":
        return h * w // grid_side(grid, ratio) ** 2
    kept = int(h * w * (1 - ratio))
    if kept == 0:
        raise config.ConfigError(
            f"model.mask_ratio: {ratio} keeps none of the {h * w} patches: lower it, or use smaller patches"
        )
    return kept


def grid_side(grid: Pair, ratio: float) -> int:
    """Returns the side s of the squares; grid masking keeps one patch of each: ratio = 1 - 1/s^2.

    Raises ConfigError if there is no such s, or it does not divide the grid.
    """
    side = round(math.sqrt(1 / (1 - ratio)))
    if abs(1 - 1 / side**2 - ratio) > 1e-3:
        raise config.ConfigError(
            f"model.mask_ratio: {ratio}, but grid masking keeps one patch of each s x s square: 0.75, 0.8889, 0.9375"
        )
    if grid[0] % side or grid[1] % side:
        raise config.ConfigError(
            f"model.mask_ratio: {ratio} with grid masking needs squares of {side}x{side} patches, which do not tile "
            f"the grid of {grid[0]}x{grid[1]}: change the image or patch size"
        )
    return side


def _random(noise: Float[Array, "B N"], grid: Pair, masked: int) -> Float[Array, "B N"]:
    return noise


def _grid(noise: Float[Array, "B N"], grid: Pair, masked: int) -> Float[Array, "B N"]:
    """The same patch of every square is kept; which one, the first number of the noise says."""
    h, w = grid
    side = math.isqrt(h * w // (h * w - masked))
    chosen = (noise[:, :1] * side**2).astype(jnp.int32)
    place = (jnp.arange(h)[:, None] % side) * side + jnp.arange(w) % side
    return jnp.where(place.reshape(1, -1) == chosen, noise, noise + 1)


def _block(noise: Float[Array, "B N"], grid: Pair, masked: int) -> Float[Array, "B N"]:
    """Rectangles are masked one after the other until `masked` patches are (Bao et al. 2022, algorithm 1).

    As there: an area between 16 patches (of a 14 x 14 grid; in proportion on others) and what is left to mask, an
    aspect ratio log-uniform in [0.3, 1/0.3], any position. Here the last rectangle is cut to the exact count, row by
    row, and there are N/4 rectangles at most (four numbers of the noise make one); should they not suffice, which is
    rare, random patches are masked too.
    """
    B, N = noise.shape
    h, w = grid
    rounds = max(1, N // 4)
    smallest = max(1.0, N * 16 / 196)
    draws = jnp.take(noise, jnp.arange(4 * rounds) % N, axis=1).reshape(B, rounds, 4)

    def rectangle(draw: Float[Array, "B 4"], left: Int[Array, "B"]) -> Bool[Array, "B N"]:
        u = draw.T[:, :, None]
        area = smallest + u[0] * jnp.maximum(left[:, None] - smallest, 0)
        aspect = jnp.exp(math.log(0.3) * (1 - 2 * u[1]))
        height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, h)
        width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, w)
        top, leftmost = jnp.floor(u[2] * (h - height + 1)), jnp.floor(u[3] * (w - width + 1))
        rows, columns = jnp.arange(N) // w, jnp.arange(N) % w
        return (rows >= top) & (rows < top + height) & (columns >= leftmost) & (columns < leftmost + width)

    def mask_one(hidden: Bool[Array, "B N"], draw: Float[Array, "B 4"]) -> tuple[Bool[Array, "B N"], None]:
        left = masked - hidden.sum(axis=1)
        new = rectangle(draw, left) & ~hidden
        return hidden | (new & (jnp.cumsum(new, axis=1) <= left[:, None])), None

    hidden, _ = jax.lax.scan(mask_one, jnp.zeros((B, N), bool), draws.transpose(1, 0, 2))
    return noise + hidden


KINDS = {"random": _random, "block": _block, "grid": _grid}

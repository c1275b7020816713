"""Resampling along one axis as a matrix: each new sample as weights of the old ones."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def cubic_weights(size: int, new_size: int, antialias: bool) -> Float[np.ndarray, "new_size size"]:
    """Each new sample as weights of the old ones: cubic convolution (Keys 1981) at half-pixel centres."""
    step = size / new_size
    centres = (np.arange(new_size) + 0.5) * step - 0.5
    if antialias:
        stretch = max(step, 1.0)
        weights = _cubic((np.arange(size) - centres[:, None]) / stretch, a=-0.5)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights = np.zeros((new_size, size))
    for offset in (-1, 0, 1, 2):
        taps = np.floor(centres) + offset
        inside = np.clip(taps, 0, size - 1).astype(int)
        np.add.at(weights, (np.arange(new_size), inside), _cubic(taps - centres, a=-0.75))
    return weights.astype(np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def bucket_weights(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    """Each new sample as the old one in whose part of the axis it begins, without a mix (Idefics2 and 3)."""
    starts = np.minimum(np.arange(new_size, dtype=np.float32) * np.float32(1 / new_size), np.float32(1 - 1e-6))
    borders = np.arange(1 / size, 1.0, 1 / size).astype(np.float32)
    return np.eye(size, dtype=np.float32)[np.searchsorted(borders, starts, side="right").clip(max=size - 1)]


def linear_weights(size: int, new_size: int) -> Float[np.ndarray, "new_size size"]:
    """Linear interpolation at half-pixel centres without antialias; the border repeats."""
    centres = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    return np.stack([np.interp(centres, np.arange(size), one) for one in np.eye(size)], axis=1)


def resample(
    spec: str,
    rows: Float[np.ndarray, "new_h h"],
    columns: Float[np.ndarray, "new_w w"],
    grid: Float[Array, "..."] | Float[np.ndarray, "..."],
) -> Float[Array, "..."] | Float[np.ndarray, "..."]:
    """A grid with both of its axes resampled, as an einsum in float32; in NumPy, on the host, for a NumPy array."""
    wide = grid.astype(np.float32)
    if isinstance(grid, np.ndarray):
        return np.einsum(spec, rows, columns, wide, optimize=True).astype(grid.dtype)
    return jnp.einsum(spec, rows, columns, wide, precision=jax.lax.Precision.HIGHEST).astype(grid.dtype)

"""Positions of several axes for texts with images among them: M-RoPE (Wang et al. 2024, Qwen2-VL, section 2.1)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

Array = Any  # of NumPy, or if one is of JAX, of JAX


def multimodal_positions(real: Array, image_index: Array, grids: Array, times: Array, rows: int) -> Array:
    """Positions (t, h, w) int32 [B, L, 3] of text tokens and image tokens; of other places, that of what came before.

    Text counts on by one, alike on all axes. An image's tokens begin at the next number p: the token in row r and
    column c of its grid has (p + t, p + r, p + c), and the text behind it goes on at p + max(h, w). The slices of a
    video, t = 0, 1, …, share one p.

    Args:
      real [B, L]: 1 or True at tokens, which padding and images that are left out are not.
      image_index [B, L]: row of the example's image tokens [I * rows], image by image, row by row; -1 at text.
      grids [B, I, 2]: rows and columns of each image's tokens, at most `rows` in all; the rows behind are padding.
      times [B, I]: t, the number of a slice in its video; 0 of images.
      rows: tokens that each image has room for.
    """
    given = (real, image_index, grids, times)
    xp = np if all(isinstance(each, np.ndarray) for each in given) else jnp
    real, grids, times = real.astype(bool), xp.maximum(grids, 1), times.astype(xp.int32)
    is_image = (image_index >= 0) & real
    index = xp.where(is_image, image_index, 0)
    image, within = index // rows, index % rows
    sizes = xp.take_along_axis(grids, image[..., None], axis=1)
    time = xp.take_along_axis(times, image, axis=1)
    largest, width = sizes.max(axis=-1), sizes[..., 1]
    begins = (within == 0) & (time == 0)
    steps = xp.where(is_image, xp.where(begins, largest, 0), real)
    reached = xp.cumsum(steps.astype(xp.int32), axis=1)
    in_image = xp.stack([time, within // width, within % width], axis=-1) + (reached - largest)[..., None]
    in_text = xp.maximum(reached - 1, 0)[..., None]
    return xp.where(is_image[..., None], in_image, in_text).astype(xp.int32)

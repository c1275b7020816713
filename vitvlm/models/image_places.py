"""Places of images in texts, as arrays: which row of the image tokens stands where, and whose places these are.

An index [B, L] says which of a text's image tokens, those of all its images one after the other, stands at each place;
-1 where a token of the text does. Rows behind those of the images are vectors of the model's own.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitvlm.models.image_features import Features
from vitvlm.models.outputs import EncoderOutput
from vitvlm.nn.patches import Patches

Images = Float[Array, "B I H W C"] | Float[Array, "B H W C"] | Patches


def by_text(images: Images | Features) -> Float[Array, "B I H W C"] | Patches | Features:
    """Returns images with those of a text together, [B, I, …]. Raises ValueError for other shapes."""
    if isinstance(images, Features):
        return images
    pixels, dims = (images.pixels, 3) if isinstance(images, Patches) else (images, 4)
    if pixels.ndim == dims:
        return by_text(jax.tree.map(lambda leaf: leaf[:, None], images))
    if pixels.ndim != dims + 1:
        found = list(pixels.shape)
        raise ValueError(f"images must be [B, I, H, W, C], I to each text, or [B, H, W, C], or Patches; got {found}")
    return images


def of_texts(
    images: Images | Features, text_tokens: Int[Array, "B L"] | None
) -> Float[Array, "B I H W C"] | Patches | Features:
    """The same as `by_text`. Raises ValueError for images of another number of texts too."""
    images = by_text(images)
    given = len(jax.tree.leaves(images)[0])
    if text_tokens is None or given != len(text_tokens):
        count = "no" if text_tokens is None else len(text_tokens)
        raise ValueError(f"images of {given} texts, and {count} texts: give both for each")
    return images


def in_order(
    text_tokens: Int[Array, "B L"], image_token: int, real: Bool[Array, "B R"] | None = None
) -> Int[Array, "B L"]:
    """Index by which the image tokens stand, in their order, wherever a text has the token of an image.

    Args:
      real: True at rows that are an image's, no padding of one that is smaller than others; None: all are.
    """
    here = text_tokens == image_token
    number = jnp.cumsum(here, axis=1) - 1
    if real is not None:
        R = real.shape[1]
        order = jnp.argsort(~real, axis=1, stable=True)
        number = jnp.where(number < real.sum(axis=1, keepdims=True), number, R)
        order = jnp.pad(order, [(0, 0), (0, 1)], constant_values=R)
        number = jnp.take_along_axis(order, jnp.clip(number, 0, R), axis=1)
    return jnp.where(here, number, -1)


def rows_of(encoded: EncoderOutput, image_tokens: Float[Array, "B I M D"]) -> Bool[Array, "B R"] | None:
    """True at rows of a text's image tokens that are no padding of an image smaller than others; None: all are."""
    B, _, M, _ = image_tokens.shape
    return encoded.mask.reshape(B, -1) if encoded.mask is not None and encoded.mask.shape[1] == M else None


def grids_of(encoded: EncoderOutput, image_tokens: Float[Array, "B I M D"]) -> Int[Array, "B I 2"]:
    """Rows and columns of each image's M tokens, behind a connector that may have made squares of tokens one.

    Of a connector that keeps no grid, such as queries, the tokens of an image are one row.
    """
    B, count, M, _ = image_tokens.shape
    if encoded.grids is not None and encoded.tokens.shape[1] == M:
        return encoded.grids.reshape(B, count, 2)
    (h, w), factor = encoded.grid, math.isqrt(max(encoded.grid[0] * encoded.grid[1] // M, 1))
    kept = h % factor == w % factor == 0 and h * w == factor**2 * M
    return jnp.broadcast_to(jnp.array((h // factor, w // factor) if kept else (1, M)), (B, count, 2))


def put(rows: Float[Array, "B R D"], texts: Float[Array, "B L D"], index: Int[Array, "B L"]) -> Float[Array, "B L D"]:
    """Puts image tokens where the index has them; a row that is not there is NaN."""
    taken = jnp.take_along_axis(rows, index[:, :, None], axis=1, mode="fill", fill_value=jnp.nan)
    return jnp.where(index[:, :, None] >= 0, taken.astype(texts.dtype), texts)


def images_at(index: Int[Array, "B L"], images: int, M: int) -> Int[Array, "B L"]:
    """Number of the image that each place belongs to, of so many with M tokens each; -1 at places of text.

    A vector of the model's own, such as the newline between rows of tokens, belongs to the image before it.
    """
    own = index >= images * M
    number = jnp.where(own, -1, index // M)
    place = jnp.where(number >= 0, jnp.arange(index.shape[1]), 0)
    before = jnp.take_along_axis(number, jax.lax.cummax(place, axis=1), axis=1)
    return jnp.where(own, before, number)


def visible(image_at: Int[Array, "B L"], image_mask: Bool[Array, "B I"]) -> Bool[Array, "B L"]:
    """True at places of text, and at those of images that are there."""
    there = jnp.take_along_axis(image_mask, jnp.maximum(image_at, 0), axis=1, mode="fill", fill_value=False)
    return (image_at < 0) | there


def positions_without(positions: Int[Array, "B L"], visible: Bool[Array, "B L"]) -> Int[Array, "B L"]:
    """Positions that do not count the places that are not visible; they restart wherever the given ones are 0.

    A place that is not visible has that of the visible one before it.
    """
    return jnp.maximum(positions - _count(~visible, positions), 0)


def stand_ins(
    visible: Bool[Array, "B L"], positions: Int[Array, "B L *axes"] | None
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"]]:
    """Places whose tokens stand for those that are not visible: the last visible one before in the same text.

    So what follows is predicted as from there.

    Args:
      positions: of the texts, of which each in a row of several begins at 0; None: one text a row.

    Returns the places, each its own where none is visible before, and True at these.
    """
    number = jnp.broadcast_to(jnp.arange(visible.shape[1]), visible.shape)
    first = ~visible & (_count(visible, positions) == 0)
    return jnp.where(first, number, jax.lax.cummax(jnp.where(visible, number, 0), axis=1)), first


def _count(counted: Bool[Array, "B L"], positions: Int[Array, "B L *axes"] | None) -> Int[Array, "B L"]:
    """Counts the places of a text up to each."""
    number = jnp.cumsum(counted, axis=1)
    if positions is None:
        return number
    begins = jnp.all(positions.reshape(*counted.shape, -1) == 0, axis=-1)
    start = jax.lax.cummax(jnp.where(begins, jnp.arange(counted.shape[1]), 0), axis=1)
    return number - jnp.take_along_axis(number - counted, start, axis=1)

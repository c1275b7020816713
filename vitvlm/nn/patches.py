"""Images as sequences of patches, and back (Dosovitskiy et al. 2021, section 3.1)."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vitvlm.nn.dense import Dense

Pair = tuple[int, int]


def as_pair(size: int | Pair) -> Pair:
    """`16` as `(16, 16)`; a pair (height, width) stays."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def patch_grid(image: Pair, patch: Pair) -> Pair:
    """Patches per column and per row, (h, w), of an image of (height, width) pixels.

    Raises ValueError if the patch does not divide the image.
    """
    (H, W), (p, q) = image, patch
    if H % p or W % q:
        raise ValueError(
            f"image {H}x{W} is not divisible by patch {p}x{q}: resize the image (model.image_size and the data's "
            f"operations) or change model.patch_size"
        )
    return H // p, W // q


def patchify(images: Float[Array, "B H W C"], patch: Pair) -> Float[Array, "B N PPC"]:
    """Cuts images into non-overlapping patches, row by row; in a patch the order is row, column, channel.

    Raises ValueError if the patch does not divide the image, or there is no batch axis.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be [B, H, W, C], got {list(images.shape)}: a single image needs a batch axis")
    B, H, W, C = images.shape
    p, q = patch
    h, w = patch_grid((H, W), patch)
    cut = images.reshape(B, h, p, w, q, C)
    return jnp.einsum("bhpwqc->bhwpqc", cut).reshape(B, h * w, p * q * C)


def unpatchify(patches: Float[Array, "B N PPC"], grid: Pair, patch: Pair) -> Float[Array, "B H W C"]:
    """Puts patches back into images: the inverse of `patchify` for images of `grid` patches.

    Raises ValueError if there are not h*w patches, or their values do not fill the patch.
    """
    B, N, PPC = patches.shape
    (h, w), (p, q) = grid, patch
    if h * w != N or PPC % (p * q):
        raise ValueError(f"{N} patches of {PPC} values are not a grid of {h}x{w} patches of {p}x{q} pixels")
    cut = patches.reshape(B, h, w, p, q, PPC // (p * q))
    return jnp.einsum("bhwpqc->bhpwqc", cut).reshape(B, h * p, w * q, PPC // (p * q))


def take_tokens(tokens: Float[Array, "B N D"], indices: Int[Array, "B n"]) -> Float[Array, "B n D"]:
    """Each example's own choice of tokens, in the order of `indices`."""
    return jnp.take_along_axis(tokens, indices[:, :, None], axis=1)


class PatchEmbed(nn.Module):
    """Linear map of each patch to a token, z = x E + b; with `keep`, of those patches only."""

    width: int
    patch: Pair
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"], keep: Int[Array, "B n"] | None = None) -> Float[Array, "B n D"]:
        patches = patchify(images, self.patch)
        if keep is not None:
            patches = take_tokens(patches, keep)
        projection = Dense(self.width, self.use_bias, dtype=self.dtype, param_dtype=self.param_dtype, name="projection")
        return projection(patches)

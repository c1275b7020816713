"""Images as sequences of patches, and back (Dosovitskiy et al. 2021, section 3.1)."""

import math
from typing import ClassVar

import flax.struct
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from vitvlm.nn.dense import product
from vitvlm.nn.resampling import linear_weights, resample
from vitvlm.nn.roles import Role, Roles

Pair = tuple[int, int]


@flax.struct.dataclass
class Patches:
    """Images of shapes of their own, each as at most N patches.

    Fields:
      pixels [B, N, P*P*C]: row by row; in a patch the order is row, column, channel. What is behind is padding.
      mask [B, N]: 1 or True at patches of the image.
      grids [B, 2]: rows and columns of patches of each image, whose product is at most N.
    """

    pixels: Float[Array, "B N PPC"]
    mask: Shaped[Array, "B N"]
    grids: Int[Array, "B 2"]


def as_pair(size: int | Pair) -> Pair:
    """Returns `(16, 16)` for `16`; a pair (height, width) stays."""
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


def whole_patches(image: Pair, patch: Pair) -> Pair:
    """The part of an image of (height, width) pixels, from the top left, that patches fill."""
    (H, W), (p, q) = image, patch
    return H - H % p, W - W % q


def pad_to_patches(images: Float[Array, "B H W C"], patch: Pair) -> Float[Array, "B H2 W2 C"]:
    """Images with zeros below and to the right, so that patches fill them."""
    (H, W), (p, q) = images.shape[1:3], patch
    return jnp.pad(images, [(0, 0), (0, -H % p), (0, -W % q), (0, 0)])


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


def as_patches(images: Float[Array, "B H W C"], patch: Pair) -> Patches:
    """Images of one shape, which the patch divides, as Patches without padding."""
    pixels = patchify(images, patch)
    grid = patch_grid(images.shape[1:3], patch)
    B, N, _ = pixels.shape
    return Patches(pixels, jnp.ones((B, N), bool), jnp.broadcast_to(jnp.array(grid), (B, 2)))


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


def resample_kernel(kernel: Float[Array, "p q C D"], patch: Pair) -> Float[Array, "P Q C D"]:
    """PI-resize (Beyer et al. 2023, FlexiViT, section 3.4): the embedding's kernel for patches of another size.

    With B, the bilinear resize of a patch as a matrix, w becomes pinv(B^T) w: when patches grow, a resized patch gives
    the token that the patch gave, <B x, w'> = <x, w>; when they shrink, it is the best in the mean over white x.
    B is the product of one matrix for each axis, and so is its pseudo-inverse.
    """
    old = kernel.shape[:2]
    if old == patch:
        return kernel
    rows, columns = (np.linalg.pinv(linear_weights(n, m).T).astype(np.float32) for n, m in zip(old, patch))
    return resample("Pp,Qq,pqCD->PQCD", rows, columns, kernel)


class PatchEmbed(nn.Module):
    """Linear map of each patch to a token, z = x E + b, with E as a kernel [P, P, C, D]; with `keep`, of those patches.

    Called with another patch size, the kernel is resampled to it: see `resample_kernel`. With `cut` False the input is
    [B, N, P*P*C], patches already.
    """

    roles: ClassVar[Roles] = (
        ("kernel", Role("matrix", resample=lambda kernel, shape: resample_kernel(kernel, shape[:2]))),
        ("bias", Role("bias")),
    )

    width: int
    patch: Pair
    use_bias: bool = True
    cut: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W C"] | Float[Array, "B N PPC"],
        keep: Int[Array, "B n"] | None = None,
        patch: Pair | None = None,
    ) -> Float[Array, "B _n D"]:
        patches = patchify(images, patch or self.patch) if self.cut else images
        channels = images.shape[-1] if self.cut else images.shape[-1] // math.prod(self.patch)
        if keep is not None:
            patches = take_tokens(patches, keep)
        # The fans of a linear map of whole patches, as in MAE: a convolution's would differ.
        init = nn.initializers.xavier_uniform(in_axis=(0, 1, 2), out_axis=3)
        kernel = self.param("kernel", init, (*self.patch, channels, self.width), self.param_dtype)
        kernel = resample_kernel(kernel, patch or self.patch).reshape(-1, self.width)
        tokens = product(patches.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            tokens = tokens + self.param("bias", nn.initializers.zeros_init(), (self.width,), self.param_dtype).astype(
                self.dtype
            )
        return tokens

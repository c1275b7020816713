"""Feature pyramids: maps of several strides, finest first, made alike (Lin et al. 2017)."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.nn.patches import Pair

Pyramid = tuple[Float[Array, "B _ _ _"], ...]  # [B, h_s, w_s, C_s] for each level s, finest first


class FeaturePyramid(nn.Module):
    """The top-down pathway (Lin et al. 2017, section 3): every level gets what the coarser ones know.

    A 1x1 convolution brings each level to the same width; from the coarsest on, each is doubled in size and added to
    the next finer one; a 3x3 convolution follows on every sum. No activations, biases everywhere.

    Fields:
      width: D of all levels.
      extra_levels: coarser ones appended, each every second row and column of the one before (the paper's P6).

    Sides need not be exactly halved from level to level: see `upsample`.
    """

    width: int = 256
    extra_levels: int = 0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid) -> Pyramid:
        def conv(kernel: int, name: str) -> nn.Conv:
            return nn.Conv(
                self.width,
                kernel_size=(kernel, kernel),
                padding=kernel // 2,
                kernel_init=nn.initializers.lecun_uniform(),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )

        levels = [conv(1, f"lateral_{s}")(level) for s, level in enumerate(pyramid)]
        for s in reversed(range(len(levels) - 1)):
            levels[s] += upsample(levels[s + 1], levels[s].shape[1:3])
        levels = [conv(3, f"output_{s}")(level) for s, level in enumerate(levels)]
        for _ in range(self.extra_levels):
            levels.append(levels[-1][:, ::2, ::2])
        return tuple(levels)


def upsample(x: Float[Array, "B h w D"], size: Pair) -> Float[Array, "B H W D"]:
    """Nearest neighbour to `size`: row i is row floor(i h / H), as PyTorch's `interpolate(mode="nearest")` has it."""
    (h, w), (H, W) = x.shape[1:3], size
    rows, columns = np.arange(H) * h // H, np.arange(W) * w // W
    return x[:, rows][:, :, columns]

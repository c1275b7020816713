"""Feature pyramids: maps of several strides, finest first, made alike (Lin et al. 2017)."""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.nn.dense import Dense
from vitvlm.nn.patches import Pair
from vitvlm.nn.positions import PositionTable
from vitvlm.nn.roles import LINEAR, Role, Roles, under

POSITIONS = ("learned", "sincos")
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

    roles: ClassVar[Roles] = under(r"(lateral|output)_\d+/", LINEAR)

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


class ScaleTokens(nn.Module):
    """A pyramid as one sequence of tokens: which level a token is of, and where it lies, is added to it.

    A linear map brings each level to the same width. One table of positions serves all levels: it is resampled to each,
    so that the same place in the image has the same position everywhere. Each level adds a vector of its own, as in
    Deformable DETR (Zhu et al. 2021, section 4.1).

    Fields:
      width: D.
      positions: "learned" or "sincos"; table_grid: (h, w) of their table.

    Raises ConfigError for unknown positions.
    """

    roles: ClassVar[Roles] = (
        *under(r"level_\d+/", Dense.roles),
        ("scales", Role("table")),
        *under("positions/", PositionTable.roles),
    )

    width: int
    table_grid: Pair
    positions: str = "sincos"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid) -> Float[Array, "B N D"]:
        """The tokens of all levels, finest first, each row by row: N = sum of h_s w_s."""
        if self.positions not in POSITIONS:
            near = config.suggest(self.positions, POSITIONS)
            raise config.ConfigError(f"model.positions: no positions {self.positions!r}; {near}")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        table = PositionTable(
            self.positions, self.table_grid, self.width, param_dtype=self.param_dtype, name="positions"
        )
        init = nn.initializers.normal(0.02)
        scales = self.param("scales", init, (len(pyramid), self.width), self.param_dtype)
        sequences = []
        for s, level in enumerate(pyramid):
            B, h, w, C = level.shape
            tokens = Dense(self.width, name=f"level_{s}", **dtypes)(level.reshape(B, h * w, C))
            places, _ = table((h, w))
            sequences.append(tokens + (places + scales[s]).astype(self.dtype))
        return jnp.concatenate(sequences, axis=1)


def split_scales(tokens: Float[Array, "B N D"], grids: Sequence[Pair]) -> Pyramid:
    """The levels' maps again: the inverse of putting maps of these grids (h_s, w_s) one after the other."""
    ends = np.cumsum([h * w for h, w in grids])
    parts = jnp.split(tokens, ends[:-1], axis=1)
    return tuple(part.reshape(len(part), h, w, -1) for part, (h, w) in zip(parts, grids))


def upsample(x: Float[Array, "B h w D"], size: Pair) -> Float[Array, "B H W D"]:
    """Nearest neighbour to `size`: row i is row floor(i h / H), as PyTorch's `interpolate(mode="nearest")` has it."""
    (h, w), (H, W) = x.shape[1:3], size
    rows, columns = np.arange(H) * h // H, np.arange(W) * w // W
    return x[:, rows][:, :, columns]

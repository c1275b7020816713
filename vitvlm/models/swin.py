"""The Swin transformer: windows that shift, and patches that merge from stage to stage (Liu et al. 2021)."""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.models.outputs import EncoderOutput
from vitvlm.models.registry import MODELS, module_fields
from vitvlm.nn.blocks import Block
from vitvlm.nn.dense import Dense
from vitvlm.nn.patches import Pair, PatchEmbed, as_pair, pad_to_patches, patch_grid, whole_patches
from vitvlm.nn.positions import PositionTable
from vitvlm.nn.roles import NORM, Roles, under
from vitvlm.nn.stack import Captured, apply_each
from vitvlm.nn.windows import WindowAttention

# Table 7; the paper's C is `width`.
SIZES = {
    "T": {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "S": {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "B": {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
    "L": {"width": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)},
}

POSITIONS = ("none", "learned", "sincos")


class PatchMerge(nn.Module):
    """The tokens of each 2 x 2 patches side by side, a norm, and a linear map from 4D to 2D without bias.

    A grid with an odd side is padded with zeros, below or to the right.
    """

    roles: ClassVar[Roles] = (*under("norm/", NORM), *under("reduction/", Dense.roles))

    norm_eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"], grid: Pair) -> tuple[Float[Array, "B M E"], Pair]:
        """The merged tokens, of width E = 2D, and their grid."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        B, _, D = tokens.shape
        h, w = grid
        maps = jnp.pad(tokens.reshape(B, h, w, D), [(0, 0), (0, h % 2), (0, w % 2), (0, 0)])
        h, w = (h + 1) // 2, (w + 1) // 2
        # Of the four, the order is column by column.
        four = jnp.einsum("BhrwcD->BhwcrD", maps.reshape(B, h, 2, w, 2, D)).reshape(B, h * w, 4 * D)
        normed = nn.LayerNorm(self.norm_eps, name="norm", **dtypes)(four)
        return Dense(2 * D, use_bias=False, name="reduction", **dtypes)(normed), (h, w)


class Stage(nn.Module):
    """Stage: merges patches, except in the first one, then applies blocks; every second has shifted windows.

    Fields:
      make_block, make_attention, make_merge: make a `Block`, a `WindowAttention` and, except in the first stage, a
        `PatchMerge`, from what depends on the stage.
      depth, heads: number of blocks, K; mlp_ratio, remat: see `Swin`.
    """

    roles: ClassVar[Roles] = (
        *under("merge/", PatchMerge.roles),
        *under(r"blocks_\d+/attention/", WindowAttention.roles),
        *under(r"blocks_\d+/", Block.roles),
    )

    make_block: Callable[..., nn.Module]
    make_attention: Callable[..., nn.Module]
    make_merge: Callable[..., nn.Module] | None
    depth: int
    heads: int
    mlp_ratio: float
    remat: str

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B N D"],
        grid: Pair,
        drop_path: Sequence[float | None],
        train: bool = False,
        capture: Collection[str] = (),
    ) -> tuple[Float[Array, "B M E"], Pair, list[Captured]]:
        """The tokens after the last block, their grid, and what is captured of each block."""
        if self.make_merge is not None:
            tokens, grid = self.make_merge(name="merge")(tokens, grid)
        blocks = [
            self.make_block(
                self.heads,
                int(self.mlp_ratio * tokens.shape[-1]),
                make_attention=functools.partial(self.make_attention, grid=grid, shifted=i % 2 == 1),
                name=f"blocks_{i}",
            )
            for i in range(self.depth)
        ]
        tokens, layers = apply_each(blocks, tokens, drop_path, remat=self.remat, train=train, capture=capture)
        return tokens, grid, layers


class Swin(nn.Module):
    """Patches, a norm, stages of blocks with windowed attention, a final norm, the mean, and a linear head if S > 0.

    Fields:
      width: of the first stage, C; each next stage is twice as wide, and D is the width of the last.
      depths, heads: number of blocks, and K, of each stage.
      window: side of the windows in patches.
      mlp_ratio: hidden width of the MLPs over the width of the stage.
      patch_size, image_size: a number or (height, width). image_size fixes the table of absolute positions, if there
        is one. Images of any size are accepted: one that the patch does not divide gets zeros below and to the right.
      num_classes: S; 0 for no head.
      level_norms: stages, from 0 on, whose level of the pyramid passes a norm of its own; there is no final norm then,
        and the tokens are those of the last level (the backbone of a detector). None: a final norm, and no others.
      positions: absolute ones, besides the relative ones of each block: "none", "learned" or "sincos".
      norm_eps: of the blocks' norms and the final one; embed_norm_eps: of those after the patch embedding, in patch
        merging and of the pyramid's levels.
      always_partition: see `nn.windows.WindowAttention`; detectors have it.
      drop_path, dropout, attention_dropout: see `nn.blocks.Block`; drop_path is that of the last block, from which it
        falls to 0 at the first, through all stages.
      remat: see `nn.stack.apply_blocks`.
      dtype: of the computation; param_dtype: of the parameters.
    """

    roles: ClassVar[Roles] = (
        *under("patches/", PatchEmbed.roles, "embedding"),
        *under("patches_norm/", NORM, "embedding"),
        *under("positions/", PositionTable.roles, "embedding"),
        *under(r"stages_\d+/", Stage.roles, "block"),
        *under(r"(norm|level_norms_\d+)/", NORM),
        *under("head/", Dense.roles, "head"),
    )

    width: int
    depths: Sequence[int]
    heads: Sequence[int]
    window: int = 7
    mlp_ratio: float = 4.0
    patch_size: int | Pair = 4
    image_size: int | Pair = 224
    num_classes: int = 0
    level_norms: tuple[int, ...] | None = None
    positions: str = "none"
    qkv_bias: bool = True
    activation: str = "gelu"
    norm_eps: float = 1e-5
    embed_norm_eps: float = 1e-5
    always_partition: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: str = "none"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"], *, train: bool = False, capture: Collection[str] = ()
    ) -> EncoderOutput:
        """Encodes images.

        The pyramid has one level per stage, [B, h, w, C], [B, h/2, w/2, 2C] and so on, halves rounded up: the output of
        the stage's last block, before merging and, if not among `level_norms`, without a norm. There is no prefix
        (R = 0).

        `capture` takes "hidden", the feature maps before the first block and after each, and "attention", of each block
        as `nn.windows.WindowAttention` has it. In training, rng "dropout" is used if any dropout or drop path is on.

        Raises ConfigError for an unknown positions or capture.
        """
        self._check()
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        patch = as_pair(self.patch_size)
        images = pad_to_patches(images, patch)
        grid = patch_grid(images.shape[1:3], patch)
        tokens = PatchEmbed(self.width, patch, name="patches", **dtypes)(images)
        tokens = nn.LayerNorm(self.embed_norm_eps, name="patches_norm", **dtypes)(tokens)
        if self.positions != "none":
            positions = PositionTable(
                self.positions, self.table_grid, self.width, param_dtype=self.param_dtype, name="positions"
            )
            tokens = tokens + positions(grid)[0].astype(self.dtype)
        tokens = nn.Dropout(self.dropout, deterministic=not train)(tokens)

        block = functools.partial(
            Block,
            qkv_bias=self.qkv_bias,
            activation=self.activation,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            **dtypes,
        )
        windows = functools.partial(WindowAttention, window=self.window, always_partition=self.always_partition)
        merge = functools.partial(PatchMerge, self.embed_norm_eps, **dtypes)
        hidden, attention, pyramid = [_as_maps(tokens, grid)], [], []
        for s, (depth, heads) in enumerate(zip(self.depths, self.heads)):
            stage = Stage(
                block, windows, merge if s else None, depth, heads, self.mlp_ratio, self.remat, name=f"stages_{s}"
            )
            tokens, grid, captured = stage(tokens, grid, self._drop_path(s), train, capture)
            hidden += [_as_maps(output, grid) for output, _ in captured if output is not None]
            attention += [weights for _, weights in captured]
            level = tokens
            if s in (self.level_norms or ()):
                level = nn.LayerNorm(self.embed_norm_eps, name=f"level_norms_{s}", **dtypes)(tokens)
            pyramid.append(_as_maps(level, grid))

        tokens = level if self.level_norms is not None else nn.LayerNorm(self.norm_eps, name="norm", **dtypes)(tokens)
        pooled = tokens.mean(axis=1)
        return EncoderOutput(
            tokens=tokens,
            prefix=tokens[:, :0],
            pooled=pooled,
            grid=grid,
            pyramid=tuple(pyramid),
            logits=self._classify(pooled),
            hidden=tuple(hidden) if "hidden" in capture else None,
            attention=tuple(attention) if "attention" in capture else None,
        )

    @property
    def table_grid(self) -> Pair:
        """Grid (h, w) of the table of absolute positions: the patches that image_size fills."""
        patch = as_pair(self.patch_size)
        return patch_grid(whole_patches(as_pair(self.image_size), patch), patch)

    def _check(self) -> None:
        if self.positions not in POSITIONS:
            near = config.suggest(self.positions, POSITIONS)
            raise config.ConfigError(f"model.positions: no positions {self.positions!r}; {near}")
        if len(self.depths) != len(self.heads) or min(self.depths, default=0) < 1:
            raise config.ConfigError(
                f"model.depths: {tuple(self.depths)}, with model.heads {tuple(self.heads)}: "
                f"give each stage at least one block, and a number of heads"
            )

    def _drop_path(self, stage: int) -> list[float | None]:
        """Returns the drop path rate of each block of a stage; rates grow linearly over the blocks of all stages."""
        first = sum(self.depths[:stage])
        if not self.drop_path:
            return [None] * self.depths[stage]
        return np.linspace(0.0, self.drop_path, sum(self.depths))[first : first + self.depths[stage]].tolist()

    def _classify(self, pooled: Float[Array, "B D"]) -> Float[Array, "B S"] | None:
        if not self.num_classes:
            return None
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Dense(self.num_classes, kernel_init=nn.initializers.zeros_init(), name="head", **dtypes)(pooled)


def _as_maps(tokens: Float[Array, "B N D"], grid: Pair) -> Float[Array, "B h w D"]:
    return tokens.reshape(-1, *grid, tokens.shape[-1])


@MODELS.register("swin")
def build_swin(variant: str | None = None, **fields: Any) -> Swin:
    """A Swin from a variant, T, S, B or L, from explicit sizes, or from a variant with some sizes changed."""
    config.check_names(fields, ["variant", *module_fields(Swin)], "model")
    if variant is not None and variant not in SIZES:
        raise config.ConfigError(f"model.variant: no variant {variant!r}; {config.suggest(variant, SIZES)}")
    return config.call(Swin, SIZES.get(variant, {}) | fields, "model")

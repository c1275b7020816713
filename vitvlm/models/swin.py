"""The Swin transformer: windows that shift, and patches that merge from stage to stage (Liu et al. 2021)."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.core.limits import Count, Depth, Share, Sides, Whole
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput
from vitvlm.models.registry import MODELS, module_fields
from vitvlm.nn.attention import PROJECTIONS, Attention
from vitvlm.nn.blocks import Block
from vitvlm.nn.calls import Call, check_capture
from vitvlm.nn.dense import Dense
from vitvlm.nn.heads import classify
from vitvlm.nn.mlps import Mlp
from vitvlm.nn.norms import make_norm
from vitvlm.nn.patches import Pair, PatchEmbed, as_pair, pad_to_patches, patch_grid, whole_patches
from vitvlm.nn.positions import PositionTable
from vitvlm.nn.relative import RelativeTable
from vitvlm.nn.roles import NORM, Roles, under
from vitvlm.nn.stack import Stacked, apply_blocks
from vitvlm.nn.windows import Windows

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
      make_block: makes what makes a block from its width, heads, grid and whether it is shifted.
      make_merge: makes a `PatchMerge`; None in the first stage.
      depth, heads: number of blocks, K; remat: see `nn.stack.apply_blocks`.
    """

    roles: ClassVar[Roles] = (
        *under("merge/", PatchMerge.roles),
        *under(r"blocks_\d+/", Block.roles),
    )

    make_block: Callable[..., Callable[..., Block]]
    make_merge: Callable[..., nn.Module] | None
    depth: Depth
    heads: Count
    remat: str

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "B N D"],
        grid: Pair,
        drop_path: Sequence[float],
        call: Call,
        perturb: Mapping[str, Float[Array, "depth windows K T T"]] | None = None,
    ) -> tuple[Stacked, Pair]:
        """The output of the blocks, and the grid of their tokens."""
        if self.make_merge is not None:
            tokens, grid = self.make_merge(name="merge")(tokens, grid)
        pattern = [self.make_block(tokens.shape[-1], self.heads, grid, shifted) for shifted in (False, True)]
        looped = {"depth": self.depth, "scan": False, "remat": self.remat}
        return apply_blocks(pattern, tokens, call, drop_path=drop_path, perturb=perturb, **looped), grid


class Swin(nn.Module, ModelFacts):
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
      qkv_bias, activation: as in `nn.transformer.BlockFields`.
      norm_eps: of the blocks' norms and the final one; embed_norm_eps: of those after the patch embedding, in patch
        merging and of the pyramid's levels.
      always_partition: see `nn.windows.Windows.shifted`; detectors have it.
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

    width: Count
    depths: Sequence[int]
    heads: Sequence[int]
    window: Count = 7
    mlp_ratio: float = 4.0
    patch_size: Sides = 4
    image_size: Sides = 224
    num_classes: Whole = 0
    level_norms: tuple[int, ...] | None = None
    positions: str = "none"
    qkv_bias: bool = True
    activation: str = "gelu"
    norm_eps: float = 1e-5
    embed_norm_eps: float = 1e-5
    always_partition: bool = False
    drop_path: Share = 0.0
    dropout: Share = 0.0
    attention_dropout: Share = 0.0
    remat: str = "none"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W C"],
        *,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Sequence[Float[Array, "_ _K _T _T"]]] | None = None,
    ) -> EncoderOutput:
        """Encodes images.

        The pyramid has one level per stage, [B, h, w, C], [B, h/2, w/2, 2C] and so on, halves rounded up: the output of
        the stage's last block, before merging and, if not among `level_norms`, without a norm. There is no prefix
        (R = 0).

        `capture` takes "hidden", the feature maps before the first block and after each, and "attention", of each block
        as `nn.attention.Attention` has it with windows; `perturb` is that of `ViT`, an array for each block. In
        training, rng "dropout" is used if any dropout or drop path is on.

        Raises ConfigError for an unknown positions or capture.
        """
        self._check()
        check_capture(capture)
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

        merge = functools.partial(PatchMerge, self.embed_norm_eps, **dtypes)
        call = Call(train=train, capture=capture)
        hidden, attention, pyramid = [_as_maps(tokens, grid)], [], []
        for s, (depth, heads) in enumerate(zip(self.depths, self.heads)):
            stage = Stage(self._make_block, merge if s else None, depth, heads, self.remat, name=f"stages_{s}")
            stacked, grid = stage(tokens, grid, self._drop_path(s), call, self._of_stage(perturb, s))
            level = tokens = stacked.tokens
            hidden += [_as_maps(outputs, grid) for outputs in ([] if stacked.hidden is None else stacked.hidden[1:])]
            attention += [] if stacked.attention is None else list(stacked.weights())
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
            logits=classify(pooled, self.num_classes, **dtypes),
            hidden=tuple(hidden) if "hidden" in capture else None,
            attention=tuple(attention) if "attention" in capture else None,
        )

    @property
    def patch(self) -> Pair:
        return as_pair(self.patch_size)

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

    def _make_block(self, width: int, heads: int, grid: Pair, shifted: bool) -> Callable[..., Block]:
        """Returns what makes a block of a stage from its name."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        windows = Windows.shifted(grid, self.window, shifted, self.always_partition)
        attention = functools.partial(
            Attention,
            heads,
            biases=PROJECTIONS if self.qkv_bias else ("out",),
            positional=(RelativeTable(heads, self.window, windows.side, self.param_dtype),),
            windows=windows,
            dropout=self.attention_dropout,
            **dtypes,
        )
        return functools.partial(
            Block,
            attention=attention,
            mlp=functools.partial(Mlp, int(self.mlp_ratio * width), self.activation, **dtypes),
            norm=make_norm("layer", self.norm_eps, **dtypes),
            dropout=self.dropout,
            param_dtype=self.param_dtype,
        )

    def _of_stage(self, perturb: Mapping[str, Sequence[Array]] | None, stage: int) -> dict[str, Array] | None:
        """Returns the perturbations of a stage's blocks."""
        first = sum(self.depths[:stage])
        own = slice(first, first + self.depths[stage])
        return None if perturb is None else {kind: jnp.stack(arrays[own]) for kind, arrays in perturb.items()}

    def _drop_path(self, stage: int) -> list[float]:
        """Returns the drop path rate of each block of a stage; rates grow linearly over the blocks of all stages."""
        first = sum(self.depths[:stage])
        return np.linspace(0.0, self.drop_path, sum(self.depths))[first : first + self.depths[stage]].tolist()


def _as_maps(tokens: Float[Array, "B N D"], grid: Pair) -> Float[Array, "B h w D"]:
    return tokens.reshape(-1, *grid, tokens.shape[-1])


@MODELS.register("swin")
def build_swin(variant: str | None = None, **fields: Any) -> Swin:
    """A Swin from a variant, T, S, B or L, from explicit sizes, or from a variant with some sizes changed."""
    config.check_names(fields, ["variant", *module_fields(Swin)], "model")
    if variant is not None and variant not in SIZES:
        raise config.ConfigError(f"model.variant: no variant {variant!r}; {config.suggest(variant, SIZES)}")
    return config.call(Swin, SIZES.get(variant, {}) | fields, "model")

"""EfficientNet (Tan and Le 2019): inverted bottlenecks with squeeze-and-excitation, scaled in width and depth."""

import functools
import math
from collections.abc import Collection
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.core.limits import Count, Depths, Share, Whole
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput
from vitvlm.models.registry import MODELS, module_fields, named_variant
from vitvlm.nn.activations import activation
from vitvlm.nn.blocks import drop_examples
from vitvlm.nn.calls import check_capture
from vitvlm.nn.convolutions import ConvNorm, Stage
from vitvlm.nn.dense import Dense
from vitvlm.nn.heads import classify
from vitvlm.nn.patches import Pair
from vitvlm.nn.roles import Roles, under

# Compound scaling (section 3.3): width, depth and dropout of the published models. Their image sizes are 224, 240,
# 260, 300, 380, 456, 528 and 600; symmetric_padding names the strided blocks whose input has an odd side there.
VARIANTS: dict[str, dict[str, Any]] = {
    "B0": {"width_factor": 1.0, "depth_factor": 1.0, "dropout": 0.2, "symmetric_padding": ()},
    "B1": {"width_factor": 1.0, "depth_factor": 1.1, "dropout": 0.2, "symmetric_padding": (16,)},
    "B2": {"width_factor": 1.1, "depth_factor": 1.2, "dropout": 0.3, "symmetric_padding": (5, 8, 16)},
    "B3": {"width_factor": 1.2, "depth_factor": 1.4, "dropout": 0.3, "symmetric_padding": (5, 18)},
    "B4": {"width_factor": 1.4, "depth_factor": 1.8, "dropout": 0.4, "symmetric_padding": (6,)},
    "B5": {"width_factor": 1.6, "depth_factor": 2.2, "dropout": 0.4, "symmetric_padding": (13, 27)},
    "B6": {"width_factor": 1.8, "depth_factor": 2.6, "dropout": 0.5, "symmetric_padding": (31,)},
    "B7": {"width_factor": 2.0, "depth_factor": 3.1, "dropout": 0.5, "symmetric_padding": (18,)},
}

POOLS = ("gap", "max")
STEM_WIDTH, TOP_WIDTH = 32, 1280  # before scaling


class SqueezeExcite(nn.Module):
    """Each channel times sigmoid(W2 act(W1 m)), m its mean over all positions (Hu et al. 2018, section 3)."""

    roles: ClassVar[Roles] = under("(squeeze|excite)/", Dense.roles)

    width: Count
    activation: str = "silu"
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        squeezed = activation(self.activation)(Dense(self.width, name="squeeze", **dtypes)(x.mean(axis=(1, 2))))
        factors = jax.nn.sigmoid(Dense(x.shape[-1], name="excite", **dtypes)(squeezed))
        return x * factors[:, None, None]


class InvertedBottleneck(nn.Module):
    """MBConv: widened by a 1x1 convolution, filtered per channel, squeezed and excited, narrowed by another 1x1.

    Fields:
      width: of the output; expansion: of the input's channels in between, 1 for no convolution there.
      padding: of the depthwise convolution, see `nn.convolutions.ConvNorm`.
      squeeze_width: of the squeeze-and-excitation.
      skip: whether the input is added; drop_path: probability, in training, that it is all that is left of an example.
    """

    roles: ClassVar[Roles] = (
        *under("(expand|depthwise|project)/", ConvNorm.roles),
        *under("squeeze_excite/", SqueezeExcite.roles),
    )

    width: Count
    kernel: Count
    stride: Count
    expansion: Count
    squeeze_width: Count
    padding: Pair | None
    skip: bool
    drop_path: Share = 0.0
    activation: str = "silu"
    norm_eps: float = 1e-3
    norm_momentum: float = 0.99
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w D"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv_norm = functools.partial(ConvNorm, norm_eps=self.norm_eps, norm_momentum=self.norm_momentum, **dtypes)
        wide = x
        if self.expansion != 1:
            wide = conv_norm(x.shape[-1] * self.expansion, 1, activation=self.activation, name="expand")(wide, train)
        depthwise = conv_norm(None, self.kernel, self.stride, self.padding, self.activation, name="depthwise")
        wide = depthwise(wide, train)
        wide = SqueezeExcite(self.squeeze_width, self.activation, name="squeeze_excite", **dtypes)(wide)
        y = conv_norm(self.width, 1, name="project")(wide, train)
        if not self.skip:
            return y
        if train and self.drop_path:
            y = drop_examples(y, self.drop_path, self.make_rng("dropout"))
        return x + y


class EfficientNet(nn.Module, ModelFacts):
    """A stem, stages of inverted bottlenecks, a last 1x1 convolution, one pooled vector and, for S > 0, a linear head.

    Fields:
      width_factor, depth_factor: compound scaling of the widths and depths below, those of table 1 (B0). Widths are
        rounded to multiples of width_divisor, depths up.
      width_divisor: widths are multiples of it.
      activation: name of the activation function.
      num_classes: S; 0 for no head.
      widths, depths, kernels, strides, expansions: of each stage: channels, blocks, sides of the depthwise kernels,
        step of the first block, factor of the width inside a block.
      squeeze_ratio: width of squeeze-and-excitation relative to the block's input.
      symmetric_padding: numbers of the blocks, over all stages, whose strided convolution is padded alike before and
        after; the others have one row and column less before, which is how TensorFlow pads even sides.
      top: whether there is the last 1x1 convolution (ALIGN has none).
      pool: "gap", the mean over all positions, or "max".
      dropout: before the head; drop_path: of the block after the last, as it grows from 0 by an equal step per block
        (the paper's drop connect, 0.2).
      norm_eps, norm_momentum: see `nn.convolutions.BatchNorm`.
      dtype: of the computation; param_dtype: of the parameters.

    Variables: "params", and the running statistics "batch_stats", which a call with `train` updates.
    """

    roles: ClassVar[Roles] = (
        *under("stem/", ConvNorm.roles, "embedding"),
        *under(r"stages_\d+/blocks_\d+/", InvertedBottleneck.roles, "block"),
        *under("top/", ConvNorm.roles),
        *under("head/", Dense.roles, "head"),
    )

    width_factor: float = 1.0
    depth_factor: float = 1.0
    width_divisor: Count = 8
    num_classes: Whole = 0
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    depths: Depths = (1, 2, 2, 3, 3, 4, 1)
    kernels: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expansions: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    squeeze_ratio: float = 0.25
    symmetric_padding: tuple[int, ...] = ()
    top: bool = True
    pool: str = "gap"
    activation: str = "silu"
    dropout: Share = 0.0
    drop_path: Share = 0.0
    norm_eps: float = 1e-3
    norm_momentum: float = 0.99
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    captures: ClassVar[tuple[str, ...]] = ("hidden",)  # there is no attention

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"], *, train: bool = False, capture: Collection[str] = ()
    ) -> EncoderOutput:
        """Encodes images of any size.

        Tokens are the positions after the last convolution, row by row. The pyramid is what lies before it: the last
        block's output at each stride from 4 on, for the variants 4, 8, 16 and 32. `capture` takes "hidden": the
        stem's output, then each block's. In training, rng "dropout" is used if dropout or drop_path is on.

        Raises ConfigError for an unknown pool, fields of stages of different lengths, or a capture of "attention",
        which the model does not have.
        """
        check_capture(capture, self.captures, type(self).__name__)
        self._check()
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        layers = {
            "activation": self.activation,
            "norm_eps": self.norm_eps,
            "norm_momentum": self.norm_momentum,
            **dtypes,
        }
        stem = ConvNorm(self.scaled_width(STEM_WIDTH), kernel=3, stride=2, padding=(0, 1), name="stem", **layers)
        hidden, levels = [stem(images, train)], []
        for s, blocks in enumerate(self._stages(layers)):
            if self.strides[s] > 1:
                levels.append(hidden[-1])
            hidden += Stage(blocks, name=f"stages_{s}")(hidden[-1], train)
        levels.append(hidden[-1])
        x = hidden[-1]
        if self.top:
            x = ConvNorm(self.scaled_width(TOP_WIDTH), kernel=1, name="top", **layers)(x, train)
        B, h, w, D = x.shape
        tokens = x.reshape(B, h * w, D)
        pooled = tokens.mean(axis=1) if self.pool == "gap" else tokens.max(axis=1)
        dropped = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        return EncoderOutput(
            tokens=tokens,
            prefix=tokens[:, :0],
            pooled=pooled,
            grid=(h, w),
            pyramid=tuple(levels[1:]),  # the first is of stride 2
            logits=classify(dropped, self.num_classes, **dtypes),
            hidden=tuple(hidden) if "hidden" in capture else None,
        )

    def scaled_width(self, width: int) -> int:
        """Channels after scaling: the nearest multiple of width_divisor, or the next if that is 10 % too narrow."""
        scaled, divisor = width * self.width_factor, self.width_divisor
        nearest = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
        return nearest + divisor if nearest < 0.9 * scaled else nearest

    def scaled_depth(self, depth: int) -> int:
        """Blocks of a stage after scaling."""
        return math.ceil(depth * self.depth_factor)

    def _stages(self, layers: dict[str, Any]) -> list[list[functools.partial[InvertedBottleneck]]]:
        """The blocks of each stage, to be given their names."""
        stages, width, number = [], self.scaled_width(STEM_WIDTH), 0
        total = sum(map(self.scaled_depth, self.depths))
        table = zip(self.widths, self.depths, self.kernels, self.strides, self.expansions)
        for stage_width, depth, kernel, first_stride, expansion in table:
            blocks = []
            for i in range(self.scaled_depth(depth)):
                stride = first_stride if i == 0 else 1
                asymmetric = stride == 2 and number not in self.symmetric_padding
                block = functools.partial(
                    InvertedBottleneck,
                    self.scaled_width(stage_width),
                    kernel,
                    stride,
                    expansion,
                    squeeze_width=max(1, int(width * self.squeeze_ratio)),
                    padding=(kernel // 2 - 1, kernel // 2) if asymmetric else None,
                    skip=i > 0,
                    drop_path=self.drop_path * number / total,
                    **layers,
                )
                blocks.append(block)
                width, number = self.scaled_width(stage_width), number + 1
            stages.append(blocks)
        return stages

    def _check(self) -> None:
        if self.pool not in POOLS:
            raise config.ConfigError(f"model.pool: no pooling {self.pool!r}; {config.suggest(self.pool, POOLS)}")
        for name in ("depths", "kernels", "strides", "expansions"):
            if len(getattr(self, name)) != len(self.widths):
                raise config.ConfigError(
                    f"model.{name}: {len(getattr(self, name))} stages, but model.widths has {len(self.widths)}: give "
                    f"one for each"
                )


@MODELS.register("efficientnet")
def build_efficientnet(variant: str | None = None, **fields: Any) -> EfficientNet:
    """An EfficientNet from a variant, "B0" to "B7", from explicit sizes, or from a variant with some changed."""
    config.check_names(fields, ["variant", *module_fields(EfficientNet)], "model")
    return config.call(EfficientNet, named_variant(VARIANTS, variant) | fields, "model")

"""Residual networks (He et al. 2016), version 1.5: a bottleneck's stride is in its 3x3 convolution."""

import functools
from collections.abc import Collection
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.core.limits import Count, Depths, Whole
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput
from vitvlm.models.registry import MODELS, module_fields, named_variant
from vitvlm.nn.activations import activation
from vitvlm.nn.calls import check_capture
from vitvlm.nn.convolutions import ConvNorm, Stage
from vitvlm.nn.dense import Dense
from vitvlm.nn.heads import classify
from vitvlm.nn.roles import Roles, under

# Table 1 of the paper.
VARIANTS: dict[str, dict[str, Any]] = {
    "18": {"layer": "basic", "widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2)},
    "34": {"layer": "basic", "widths": (64, 128, 256, 512), "depths": (3, 4, 6, 3)},
    "50": {"layer": "bottleneck", "widths": (256, 512, 1024, 2048), "depths": (3, 4, 6, 3)},
    "101": {"layer": "bottleneck", "widths": (256, 512, 1024, 2048), "depths": (3, 4, 23, 3)},
    "152": {"layer": "bottleneck", "widths": (256, 512, 1024, 2048), "depths": (3, 8, 36, 3)},
}

LAYERS = ("basic", "bottleneck")
REDUCTION = 4  # of a bottleneck's width


class ResidualBlock(nn.Module):
    """act(x + F(x)): F is two 3x3 convolutions ("basic") or 1x1, 3x3, 1x1 ("bottleneck"), figure 5 of the paper.

    Where width or size change, x goes through a 1x1 convolution of the same stride (option B of section 3.3).
    """

    roles: ClassVar[Roles] = under(r"(convs_\d+|shortcut)/", ConvNorm.roles)

    width: Count
    stride: Count = 1
    layer: str = "bottleneck"
    activation: str = "relu"
    inner_activation: str | None = None
    downsample_in_bottleneck: bool = False
    norm_eps: float = 1e-5
    norm_momentum: float = 0.9
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w D"]:
        conv_norm = functools.partial(
            ConvNorm,
            norm_eps=self.norm_eps,
            norm_momentum=self.norm_momentum,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        if self.layer == "basic":
            convs = [(self.width, 3, self.stride), (self.width, 3, 1)]
        else:
            narrow = self.width // REDUCTION
            strides = (self.stride, 1) if self.downsample_in_bottleneck else (1, self.stride)
            convs = [(narrow, 1, strides[0]), (narrow, 3, strides[1]), (self.width, 1, 1)]
        between = self.inner_activation or self.activation
        update = x
        for j, (width, kernel, stride) in enumerate(convs):
            act = between if j < len(convs) - 1 else None
            update = conv_norm(width, kernel, stride, activation=act, name=f"convs_{j}")(update, train)
        if x.shape[-1] != self.width or self.stride != 1:
            x = conv_norm(self.width, 1, self.stride, name="shortcut")(x, train)
        return activation(self.activation)(x + update)


class ResNet(nn.Module, ModelFacts):
    """A stem, stages of residual blocks, the mean over all positions and, for S > 0 classes, a linear head.

    Fields:
      widths, depths: of each stage, the width D_s of its output and its number of blocks.
      layer: "basic" or "bottleneck", see `ResidualBlock`.
      stem_width: channels after the first convolution.
      num_classes: S; 0 for no head.
      activation: name of the activation function.
      inner_activation: between the convolutions of a block; None is `activation`, as everywhere else.
      downsample_in_first_stage: by default the first stage has stride 1, as the stem already has 4.
      downsample_in_bottleneck: the stride in the first 1x1 convolution instead, as the paper's first version has it.
      norm_eps, norm_momentum: see `nn.convolutions.BatchNorm`.
      dtype: of the computation; param_dtype: of the parameters.

    Variables: "params", and the running statistics "batch_stats", which a call with `train` updates.
    """

    roles: ClassVar[Roles] = (
        *under("stem/", ConvNorm.roles, "embedding"),
        *under(r"stages_\d+/blocks_\d+/", ResidualBlock.roles, "block"),
        *under("head/", Dense.roles, "head"),
    )

    widths: tuple[int, ...]
    depths: Depths
    layer: str = "bottleneck"
    stem_width: Count = 64
    num_classes: Whole = 0
    activation: str = "relu"
    inner_activation: str | None = None
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    norm_eps: float = 1e-5
    norm_momentum: float = 0.9
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    captures: ClassVar[tuple[str, ...]] = ("hidden",)  # there is no attention

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"], *, train: bool = False, capture: Collection[str] = ()
    ) -> EncoderOutput:
        """Encodes images of any size.

        The pyramid is the output of each stage, for the variants of strides 4, 8, 16 and 32; tokens are the last
        level's positions, row by row. `capture` takes "hidden": the stem's output, then each stage's.

        Raises ConfigError for an unknown layer, widths and depths of different lengths, or a capture of "attention",
        which the model does not have.
        """
        check_capture(capture, self.captures, type(self).__name__)
        self._check()
        norms = {"norm_eps": self.norm_eps, "norm_momentum": self.norm_momentum}
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        stem = ConvNorm(self.stem_width, kernel=7, stride=2, activation=self.activation, name="stem", **norms, **dtypes)
        x = nn.max_pool(stem(images, train), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        levels = [x]
        block = functools.partial(
            ResidualBlock,
            layer=self.layer,
            activation=self.activation,
            inner_activation=self.inner_activation,
            downsample_in_bottleneck=self.downsample_in_bottleneck,
            **norms,
            **dtypes,
        )
        for s, (width, depth, stride) in enumerate(zip(self.widths, self.depths, self.strides)):
            blocks = [functools.partial(block, width, stride if i == 0 else 1) for i in range(depth)]
            levels.append(Stage(blocks, name=f"stages_{s}")(levels[-1], train)[-1])

        B, h, w, D = levels[-1].shape
        tokens = levels[-1].reshape(B, h * w, D)
        pooled = tokens.mean(axis=1)
        return EncoderOutput(
            tokens=tokens,
            prefix=tokens[:, :0],
            pooled=pooled,
            grid=(h, w),
            pyramid=tuple(levels[1:]),
            logits=classify(pooled, self.num_classes, **dtypes),
            hidden=tuple(levels) if "hidden" in capture else None,
        )

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of the first block of each stage."""
        return (2 if self.downsample_in_first_stage else 1, *[2] * (len(self.widths) - 1))

    def has_shortcut(self, stage: int, block: int) -> bool:
        """Tells whether a convolution projects this block's input before it is added, because its shape changes."""
        width = (self.stem_width, *self.widths)[stage]
        return block == 0 and (width != self.widths[stage] or self.strides[stage] != 1)

    def _check(self) -> None:
        if self.layer not in LAYERS:
            raise config.ConfigError(f"model.layer: no layer {self.layer!r}; {config.suggest(self.layer, LAYERS)}")
        if len(self.widths) != len(self.depths):
            raise config.ConfigError(
                f"model.depths: {len(self.depths)} stages, but model.widths has {len(self.widths)}: give one for each"
            )


@MODELS.register("resnet")
def build_resnet(variant: str | None = None, **fields: Any) -> ResNet:
    """A ResNet from a variant, "18" to "152", from explicit sizes, or from a variant with some sizes changed."""
    config.check_names(fields, ["variant", *module_fields(ResNet)], "model")
    return config.call(ResNet, named_variant(VARIANTS, variant) | fields, "model")

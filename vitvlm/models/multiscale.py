"""Any pyramid as one sequence of tokens, and a transformer on it: the multi-scale image encoder."""

from collections.abc import Collection, Mapping
from typing import Any

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.core.limits import Whole
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput
from vitvlm.models.registry import MODELS, build_backbone, module_fields
from vitvlm.nn.blocks import Block
from vitvlm.nn.calls import Call
from vitvlm.nn.dense import Dense
from vitvlm.nn.heads import classify
from vitvlm.nn.patches import Pair
from vitvlm.nn.pyramids import Pyramid, ScaleTokens, split_scales
from vitvlm.nn.roles import NORM, STACK, Roles, under
from vitvlm.nn.transformer import BlockFields


class MultiScale(BlockFields, ModelFacts, kw_only=True):
    """The levels of a backbone's pyramid as one token sequence [B, N, D], pre-norm blocks, a final norm, the mean.

    A convolutional pyramid (ResNet, with or without FPN) and a hierarchical transformer (Swin) end in the same
    sequence, so any module that takes tokens takes either.

    Fields, besides those of `nn.transformer.BlockFields`:
      backbone: an image encoder; its dtypes are those of the rest too.
      levels: which of the pyramid are taken, 0 being the finest; all by default.
      positions, table_grid: see `nn.pyramids.ScaleTokens`.
      num_classes: S; 0 for no head.
    """

    backbone: nn.Module
    levels: tuple[int, ...] | None = None
    positions: str = "sincos"
    table_grid: Pair = (14, 14)
    num_classes: Whole = 0

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W C"],
        *,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Float[Array, "depth B K N N"]] | None = None,
    ) -> EncoderOutput:
        """Tokens of all levels, finest first; `pyramid` is the same tokens as maps, `grid` that of the finest.

        `capture` takes "hidden" and "attention", of the transformer on top; `perturb` is that of `ViT`.

        Raises ConfigError for a level that the pyramid does not have, and what the backbone raises.
        """
        pyramid = self._chosen(self.backbone(images, train=train).pyramid)
        grids = [level.shape[1:3] for level in pyramid]
        x = ScaleTokens(self.width, self.table_grid, self.positions, name="scales", **self.dtypes)(pyramid)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        stacked = self.apply_blocks(x, Call(train=train, capture=capture), perturb=perturb)
        tokens = self.make_norm()(name="norm")(stacked.tokens)
        pooled = tokens.mean(axis=1)
        return EncoderOutput(
            tokens=tokens,
            prefix=tokens[:, :0],
            pooled=pooled,
            grid=grids[0],
            pyramid=split_scales(tokens, grids),
            logits=classify(pooled, self.num_classes, **self.dtypes),
            hidden=stacked.hidden,
            attention=stacked.weights(),
        )

    @property
    def image_encoder(self) -> nn.Module:
        return self.backbone.image_encoder

    @property
    def block_count(self) -> int:
        return self.depth

    @property
    def roles(self) -> Roles:
        """Layers are those of the backbone; the transformer is on top of them."""
        return (
            *under("backbone/", self.backbone.roles),
            *under("scales/", ScaleTokens.roles),
            *under(STACK, Block.roles),
            *under("norm/", NORM),
            *under("head/", Dense.roles, "head"),
        )

    @property
    def dtype(self) -> DTypeLike:
        return self.backbone.dtype

    @property
    def param_dtype(self) -> DTypeLike:
        return self.backbone.param_dtype

    def _chosen(self, pyramid: Pyramid) -> Pyramid:
        if self.levels is None:
            return pyramid
        if missing := [level for level in self.levels if not 0 <= level < len(pyramid)]:
            raise config.ConfigError(f"model.levels: {missing[0]}, but the backbone has levels 0 to {len(pyramid) - 1}")
        return tuple(pyramid[level] for level in sorted(self.levels))


@MODELS.register("multiscale")
def build_multiscale(backbone: Mapping[str, Any], **fields: Any) -> MultiScale:
    """A transformer on the pyramid of the encoder that `backbone` describes: `{"name": "swin", "variant": "T"}`."""
    config.check_names(fields, module_fields(MultiScale), "model")
    return config.call(MultiScale, fields, "model", backbone=build_backbone(backbone))

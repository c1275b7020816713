"""A feature pyramid network on top of any image encoder (Lin et al. 2017)."""

from collections.abc import Collection, Mapping
from typing import Any

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.core.limits import Count, Whole
from vitvlm.models.facts import ModelFacts
from vitvlm.models.outputs import EncoderOutput
from vitvlm.models.registry import MODELS, build_backbone, module_fields
from vitvlm.nn.pyramids import FeaturePyramid
from vitvlm.nn.roles import Roles, under


class FPN(nn.Module, ModelFacts):
    """Image encoder with a feature pyramid: levels of one width, each informed by the coarser ones.

    Fields:
      backbone: an image encoder; its dtypes are those of the FPN too.
      width, extra_levels: see `nn.pyramids.FeaturePyramid`; the paper's P6 is one extra level.
    """

    backbone: nn.Module
    width: Count = 256
    extra_levels: Whole = 0

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W C"], *, train: bool = False, capture: Collection[str] = ()
    ) -> EncoderOutput:
        """Returns the backbone's output with another pyramid: tokens, grid, pooled, logits and captures stay the same.

        So a classifier, a probe or a connector reads the same with and without FPN. Raises the backbone's errors.
        """
        encoded = self.backbone(images, train=train, capture=capture)
        pyramid = FeaturePyramid(
            self.width,
            self.extra_levels,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="pyramid",
        )
        return encoded.replace(pyramid=pyramid(encoded.pyramid))

    @property
    def image_encoder(self) -> nn.Module:
        return self.backbone.image_encoder

    @property
    def roles(self) -> Roles:
        return (*under("backbone/", self.backbone.roles), *under("pyramid/", FeaturePyramid.roles))

    @property
    def dtype(self) -> DTypeLike:
        return self.backbone.dtype

    @property
    def param_dtype(self) -> DTypeLike:
        return self.backbone.param_dtype

    @property
    def captures(self) -> tuple[str, ...]:
        return self.backbone.captures

    @property
    def num_classes(self) -> int:
        return self.backbone.num_classes


@MODELS.register("fpn")
def build_fpn(backbone: Mapping[str, Any], **fields: Any) -> FPN:
    """An FPN on the encoder that `backbone` describes: `{"name": "resnet", "variant": "50"}`."""
    config.check_names(fields, module_fields(FPN), "model")
    return config.call(FPN, fields, "model", backbone=build_backbone(backbone))

"""The resampler as a connector: the tokens of an image, or of a video's frames, become M of the language model's."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vitvlm.core import config
from vitvlm.models.connectors.base import CONNECTORS, Connector, ConnectorOutput
from vitvlm.models.perceiver import Perceiver
from vitvlm.nn.dense import Dense
from vitvlm.nn.patches import Pair
from vitvlm.nn.roles import Roles, under


class Resampling(Connector, kw_only=True):
    """Base of connectors with a `models.perceiver.Perceiver`, in the width of the features.

    Fields, besides those of `Connector`:
      latents: M, tokens of each image; depth, heads, head_dim: of the perceiver.
      mlp_width: of its MLPs, by default four times the width of the features.
      activation, qk_norm, norm_eps: of the perceiver, see `nn.transformer.BlockFields`.
      frames: F images that follow each other are a video, which M tokens stand for.
      scan, remat: of its blocks, see `nn.stack.apply_blocks`.
    """

    roles: ClassVar[Roles] = under("perceiver/", Perceiver.roles)
    captures: ClassVar[tuple[str, ...]] = ("attention",)

    latents: int = 64
    depth: int = 6
    heads: int = 8
    head_dim: int | None = 64
    mlp_width: int | None = None
    activation: str = "gelu"
    qk_norm: bool = False
    norm_eps: float = 1e-5
    frames: int = 1
    scan: bool = True
    remat: str = "none"

    def resample(
        self,
        features: Float[Array, "B N E"],
        mask: Bool[Array, "B N"] | None,
        train: bool,
        capture: Collection[str],
        perturb: Mapping[str, Any] | None,
    ) -> ConnectorOutput:
        """Returns M tokens of the width of the features; weights are [depth, B, K, M, N + M]."""
        E = features.shape[-1]
        names = ("latents", "frames", "depth", "heads", "head_dim", "activation", "qk_norm", "norm_eps")
        fields = {name: getattr(self, name) for name in (*names, "scan", "remat", "dtype", "param_dtype")}
        perceiver = Perceiver(width=E, mlp_width=self.mlp_width or 4 * E, name="perceiver", **fields)
        perturb = None if not perturb else {"cross": perturb["attention"]}
        stacked = perceiver(features.astype(self.dtype), mask, train=train, capture=capture, perturb=perturb)
        return ConnectorOutput(stacked.tokens, stacked.weights("cross"))

    def count(self, grid: Pair) -> int:
        """Returns M; of a video's frame, its share of the video's M tokens."""
        if self.latents % self.frames:
            raise config.ConfigError(
                f"model.connector.latents: {self.latents}; {self.frames} frames do not divide them"
            )
        return self.latents // self.frames


@CONNECTORS.register("resampler")
class Resampler(Resampling, kw_only=True):
    """Flamingo's Perceiver resampler, and a linear map to width D: M tokens of each image among those of the text."""

    roles: ClassVar[Roles] = (*Resampling.roles, *under("projection/", Dense.roles))

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B N E"],
        grid: Pair,
        mask: Bool[Array, "B N"] | None = None,
        *,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> ConnectorOutput:
        output = self.resample(features, mask, train, capture, perturb)
        projection = Dense(self.width, name="projection", dtype=self.dtype, param_dtype=self.param_dtype)
        return output.replace(tokens=projection(output.tokens))

"""Connectors by cross-attention: the language model's own layers look at the image tokens (Flamingo, BLIP)."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.models.connectors.base import CONNECTORS, ConnectorOutput
from vitvlm.models.connectors.resampler import Resampling
from vitvlm.models.cross_layers import CrossLayers, make_cross
from vitvlm.nn.patches import Pair

SEES = ("last", "all")
FLAMINGO = {"heads": 8, "head_dim": 64, "mlp": "plain", "activation": "gelu", "norm": "layer", "norm_eps": 1e-5}


class CrossAttention(Resampling, kw_only=True):
    """Connector whose tokens are no part of the text: layers of the language model look at them.

    An image takes one place in the text, that of its marker, whose `image_index` is the image's number; each frame of a
    video has one. A text token sees images by the markers up to it, its own place included, among the places that it
    may itself look at: none of another text packed in the same row. Before the first marker, and where that of an image
    that is not there is the last, there is nothing to see, and it gets exactly zero.

    Fields, besides those of `connectors.resampler.Resampling`:
      depth: of the perceiver; 0: there is none, and the language model looks at the features themselves.
      look: which blocks of the language model look, and how.
      sees: "last", the image just before the token alone (Alayrac et al. 2022, section 2.3), or "all" up to it.
    """

    fusion: ClassVar[str] = "cross"

    look: CrossLayers
    depth: int = 0
    sees: str = "all"

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
        self._check(mask, perturb)
        return self.resample(features, mask, train, capture, perturb) if self.depth else ConnectorOutput(features)

    def count(self, grid: Pair) -> int:
        """Returns 1: an image, or a frame, takes the place of its marker, as `supervise(…, image_tokens=1)` has it."""
        return 1

    def language_fields(self) -> dict[str, Any]:
        return {"cross": self.look}

    def context_mask(
        self,
        image_mask: Bool[Array, "B V"],
        M: int,
        image_index: Int[Array, "B L"] | None = None,
        mask: Shaped[Array, "B L"] | None = None,
        attention_mask: Bool[Array, "#B #K #L #M"] | None = None,
    ) -> Bool[Array, "B 1 #L S"]:
        """Says which text sees which image tokens, see above; every text all of its images if there are no markers."""
        if image_index is None:
            return jnp.repeat(image_mask, M, axis=1)[:, None, None]
        count, L = image_mask.shape[1], image_index.shape[1]
        image_index = image_index // self.frames
        marks = (image_index >= 0) if mask is None else (image_index >= 0) & mask.astype(bool)
        if self.sees == "last":
            last = _last(marks, attention_mask)
            number = jnp.take_along_axis(image_index, jnp.maximum(last, 0), axis=1)
            seen = (last >= 0)[:, :, None] & (number[:, :, None] == jnp.arange(count))
        else:
            at = marks[:, :, None] & (image_index[:, :, None] == jnp.arange(count))
            if attention_mask is None:
                seen = jax.lax.cummax(at.astype(jnp.int32), axis=1) > 0
            else:
                before = attention_mask[:, 0, :, :L] & jnp.tri(L, dtype=bool)
                seen = jnp.einsum("BLP,BPI->BLI", before.astype(jnp.float32), at.astype(jnp.float32)) > 0
        return jnp.repeat(seen & image_mask[:, None, :], M, axis=2)[:, None]

    def _check(self, mask: Bool[Array, "B N"] | None, perturb: Mapping[str, Any] | None) -> None:
        if self.sees not in SEES:
            raise config.ConfigError(f"model.connector.sees: {self.sees!r}; {config.suggest(self.sees, SEES)}")
        if not self.depth and (mask is not None or perturb or self.frames > 1):
            what = "perturb" if perturb else "frames" if self.frames > 1 else "images of several shapes"
            raise config.ConfigError(f"model.connector.depth: 0, without a perceiver there can be no {what}")


def _last(marks: Bool[Array, "B L"], attention_mask: Bool[Array, "#B #K #L #M"] | None) -> Int[Array, "B L"]:
    """The place of the last mark up to each place that may be looked at from there; -1 without one."""
    places = jnp.where(marks, jnp.arange(marks.shape[1]), -1)
    if attention_mask is None:
        return jax.lax.cummax(places, axis=1)
    L = marks.shape[1]
    before = attention_mask[:, 0, :, :L] & jnp.tri(L, dtype=bool)
    return jnp.max(jnp.where(before, places[:, None], -1), axis=-1)


@CONNECTORS.register("cross_attention")
def build_cross_attention(width: int, look: Mapping[str, Any] | None = None, **fields: Any) -> CrossAttention:
    """Cross-attention in each block of the language model, to the features themselves (BLIP; Li et al. 2022).

    `look` has fields of `models.cross_layers.CrossLayers`.
    """
    look = make_cross({"kind": "plain", **(look or {})}, "model.connector.look")
    return config.call(CrossAttention, {"width": width, **fields}, "model.connector", look=look)


@CONNECTORS.register("gated_cross_attention")
def build_gated_cross_attention(width: int, look: Mapping[str, Any] | None = None, **fields: Any) -> CrossAttention:
    """Gated blocks before the language model's, which look at what a perceiver makes of each image (Flamingo).

    `look` has fields of `models.cross_layers.CrossLayers`; by default there is one before each block, with the
    paper's sizes: 8 heads of 64, an MLP of four times the language model's width, layer norms, and no biases.
    """
    look = {"kind": "gated", "bias": False, "qk_norm": False, **FLAMINGO, "mlp_width": 4 * width, **(look or {})}
    own = {"width": width, "depth": 6, "sees": "last", **fields}
    return config.call(CrossAttention, own, "model.connector", look=make_cross(look, "model.connector.look"))

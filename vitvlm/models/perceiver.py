"""Flamingo's Perceiver resampler: any number of features become a fixed number of tokens (Alayrac et al. 2022)."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vitvlm.core import config
from vitvlm.core.limits import Count
from vitvlm.nn.blocks import Block
from vitvlm.nn.calls import Call
from vitvlm.nn.roles import NORM, STACK, Role, Roles, under
from vitvlm.nn.stack import Stacked
from vitvlm.nn.transformer import Transformer


class Perceiver(Transformer, kw_only=True):
    """M learned queries that look, block by block, at the features and at each other, and a norm (appendix A.1.1).

    In each block x = x + Attention(LN(x), [LN(features); LN(x)]), then x = x + MLP(LN(x)), without biases.

    Fields, besides those of `nn.transformer.Transformer`, whose `width` is that of the features:
      latents: M. frames: F images that are looked at together, those of a video; with several, each frame's features
        have a learned vector added to them.
    """

    roles: ClassVar[Roles] = (
        ("latents", Role("token")),
        ("frame_embeddings", Role("table")),
        *under(STACK, Block.roles),
        *under("norm/", NORM),
    )

    latents: Count
    frames: Count = 1
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    norm_eps: float = 1e-5

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B N D"],
        mask: Bool[Array, "B N"] | None = None,
        *,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> Stacked:
        """Resamples features to tokens [B, M, D].

        Args:
          features: of several frames, those of each lie one after the other.
          mask: True at features that are there; None: all are.
          capture: any of "hidden" and "attention", the latter's weights by the kind "cross", over features and latents,
            [depth, B, K, M, N + M]; perturb: of these, see `nn.calls.PerLayer`.

        Raises ConfigError for features that the number of frames does not divide.
        """
        B, N, D = features.shape
        init = nn.initializers.normal(1.0)  # their own code's
        if self.frames > 1:
            if N % self.frames:
                raise config.ConfigError(f"connector.frames: {self.frames} do not divide {N} features of a video")
            table = self.param("frame_embeddings", init, (self.frames, D), self.param_dtype)
            features = features + jnp.repeat(table, N // self.frames, axis=0).astype(features.dtype)
        latents = self.param("latents", init, (self.latents, D), self.param_dtype).astype(self.dtype)
        look = self.make_block(attention=None, cross=self.make_attention(cross=True, joined=True), context_norm=True)
        visible = None if mask is None else mask[:, None, None, :]
        call = Call(context=features, context_mask=visible, train=train, capture=capture)
        stacked = self.apply_blocks(jnp.broadcast_to(latents, (B, *latents.shape)), call, look, perturb=perturb)
        return stacked.replace(tokens=self.make_norm()(name="norm")(stacked.tokens))

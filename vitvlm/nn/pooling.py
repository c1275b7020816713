"""Attention pooling, one vector per image or a few; and the mean over real tokens. (CLS needs no module.)"""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from vitvlm.nn.attention import Attention
from vitvlm.nn.calls import Call
from vitvlm.nn.mlps import Mlp
from vitvlm.nn.roles import NORM, Role, Roles, under


class MapHead(nn.Module):
    """Multi-head attention pooling (Zhai et al. 2022, sec. 3.3): a learned probe looks at all tokens, then an MLP."""

    roles: ClassVar[Roles] = (
        ("probe", Role("token")),
        *under("attention/", Attention.roles),
        *under("mlp_norm/", NORM),
        *under("mlp/", Mlp.roles),
    )

    heads: int
    mlp_width: int
    activation: str = "gelu"
    norm_eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"], real: Bool[Array, "B N"] | None = None) -> Float[Array, "B D"]:
        """The probe's answer; with `real`, it looks at the tokens that are True there alone."""
        B, _, D = tokens.shape
        mask = None if real is None else real[:, None, None, :]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, D), self.param_dtype)
        probes = jnp.broadcast_to(probe.astype(tokens.dtype), (B, 1, D))
        attention = Attention(self.heads, cross=True, name="attention", **dtypes)
        x, _, _ = attention(probes, Call(context=tokens, context_mask=mask))
        normed = nn.LayerNorm(self.norm_eps, name="mlp_norm", **dtypes)(x)
        x = x + Mlp(self.mlp_width, self.activation, name="mlp", **dtypes)(normed)
        return x[:, 0]


class QueryPool(nn.Module):
    """M learned queries of width E look at all tokens once: Attention(LN(queries), LN(tokens)) (CoCa; Yu et al. 2022).

    Fields:
      norm_context: whether the tokens pass a norm here; False for tokens that come from one.

    Call: with `capture`, the weights [B, K, M, N] are returned too, else None in their place.
    """

    roles: ClassVar[Roles] = (
        ("queries", Role("token")),
        *under("(query|context)_norm/", NORM),
        *under("attention/", Attention.roles),
    )

    queries: int
    width: int
    heads: int
    norm_context: bool = True
    norm_eps: float = 1e-5
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B N D"], capture: bool = False
    ) -> tuple[Float[Array, "B M E"], Float[Array, "B K M N"] | None]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        queries = self.param("queries", nn.initializers.normal(1.0), (self.queries, self.width), self.param_dtype)
        normed = nn.LayerNorm(self.norm_eps, name="query_norm", **dtypes)(queries)
        if self.norm_context:
            tokens = nn.LayerNorm(self.norm_eps, name="context_norm", **dtypes)(tokens)
        queries = jnp.broadcast_to(normed, (len(tokens), *normed.shape))
        call = Call(context=tokens, capture=("attention",) if capture else ())
        y, weights, _ = Attention(self.heads, cross=True, name="attention", **dtypes)(queries, call)
        return y, weights


def masked_mean(tokens: Float[Array, "B L D"], mask: Shaped[Array, "B L"]) -> Float[Array, "B D"]:
    """Mean over the tokens whose mask is 1 or True, summed in float32; zeros for a text without any."""
    real = mask.astype(jnp.float32)
    total = jnp.einsum("BLD,BL->BD", tokens, real, preferred_element_type=jnp.float32)
    return (total / jnp.maximum(real.sum(axis=1, keepdims=True), 1)).astype(tokens.dtype)

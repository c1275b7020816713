"""One vector per image or text: attention pooling, and the mean over real tokens. (CLS needs no module.)"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from vitvlm.nn.attention import Attention
from vitvlm.nn.blocks import Mlp


class MapHead(nn.Module):
    """Multi-head attention pooling (Zhai et al. 2022, sec. 3.3): a learned probe looks at all tokens, then an MLP."""

    heads: int
    mlp_width: int
    activation: str = "gelu"
    norm_eps: float = 1e-6
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        B, _, D = tokens.shape
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, D), self.param_dtype)
        probes = jnp.broadcast_to(probe.astype(tokens.dtype), (B, 1, D))
        x, _ = Attention(self.heads, name="attention", **dtypes)(probes, context=tokens)
        normed = nn.LayerNorm(self.norm_eps, name="mlp_norm", **dtypes)(x)
        x = x + Mlp(self.mlp_width, self.activation, name="mlp", **dtypes)(normed)
        return x[:, 0]


def masked_mean(tokens: Float[Array, "B L D"], mask: Shaped[Array, "B L"]) -> Float[Array, "B D"]:
    """Mean over the tokens whose mask is 1 or True, summed in float32; zeros for a text without any."""
    real = mask.astype(jnp.float32)
    total = jnp.einsum("BLD,BL->BD", tokens, real, preferred_element_type=jnp.float32)
    return (total / jnp.maximum(real.sum(axis=1, keepdims=True), 1)).astype(tokens.dtype)

"""Multi-head attention (Vaswani et al. 2017, section 3.2) whose weights can be looked at."""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vitvlm.nn.attend import attend, attention_weights
from vitvlm.nn.dense import Dense
from vitvlm.nn.roles import Roles, under


class Attention(nn.Module):
    """Self-attention, or cross-attention to `context`: softmax(Q K^T / sqrt(d)) V, then a linear map.

    Fields:
      heads: K; head_dim: d, by default D / K.
      dropout: rate at which attention weights are dropped in training (rng "dropout").
      dtype: of the products; the softmax is float32 always.

    Call: `mask` [broadcastable to B K N M] is True where a query may look; `bias`, of such a shape too, is added to
    the scores. With `capture`, the weights [B, K, N, M] that multiply the values (before dropout) are returned too,
    differentiable, else None in their place.

    Raises ValueError if the heads do not divide the width and head_dim is not given.
    """

    roles: ClassVar[Roles] = under("(query|key|value|out)/", Dense.roles)

    heads: int
    head_dim: int | None = None
    qkv_bias: bool = True
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B M E"] | None = None,
        mask: Bool[Array, "#B #K #N #M"] | None = None,
        bias: Float[Array, "#B #K #N #M"] | None = None,
        train: bool = False,
        capture: bool = False,
    ) -> tuple[Float[Array, "B N D"], Float[Array, "B K N M"] | None]:
        width = x.shape[-1]
        if self.head_dim is None and width % self.heads:
            raise ValueError(f"width {width} is not divisible by {self.heads} heads: change heads or give head_dim")
        head_dim = self.head_dim or width // self.heads
        context = x if context is None else context

        def project(name: str, tokens: Float[Array, "B T D"]) -> Float[Array, "B K T d"]:
            dense = Dense(
                self.heads * head_dim, self.qkv_bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name
            )
            projected = dense(tokens)
            return projected.reshape(*tokens.shape[:2], self.heads, head_dim).transpose(0, 2, 1, 3)

        query, key, value = project("query", x), project("key", context), project("value", context)
        if capture or (train and self.dropout):
            weights = attention_weights(query, key, mask, bias)
            dropped = nn.Dropout(self.dropout, deterministic=not train)(weights)
            mixed = jnp.einsum("BKNM,BKMd->BKNd", dropped.astype(self.dtype), value)
        else:
            mixed = attend(query, key, value, mask, bias)
        mixed = mixed.transpose(0, 2, 1, 3)
        mixed = mixed.reshape(*x.shape[:2], self.heads * head_dim)
        y = Dense(width, dtype=self.dtype, param_dtype=self.param_dtype, name="out")(mixed)
        return y, weights if capture else None

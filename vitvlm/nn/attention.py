"""Multi-head attention (Vaswani et al. 2017, section 3.2) whose weights can be looked at."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vitvlm.nn.dense import Dense
from vitvlm.nn.roles import Roles, under

# On a CPU the batch is cut in so many parts, if each has as many examples as this.
CPU_PARTS, CPU_PART_SIZE = 2, 4


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


def attention_weights(
    query: Float[Array, "B K N d"],
    key: Float[Array, "B K M d"],
    mask: Bool[Array, "#B #K #N #M"] | None,
    bias: Float[Array, "#B #K #N #M"] | None = None,
) -> Float[Array, "B K N M"]:
    """softmax(Q K^T / sqrt(d) + bias) over the keys, float32. A query that may look nowhere looks everywhere alike."""
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("BKNd,BKMd->BKNM", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores)


def attend(
    query: Float[Array, "B K N d"],
    key: Float[Array, "B K M d"],
    value: Float[Array, "B K M d"],
    mask: Bool[Array, "#B #K #N #M"] | None,
    bias: Float[Array, "#B #K #N #M"] | None = None,
) -> Float[Array, "B K N d"]:
    """`attention_weights(query, key, mask, bias) @ value`, with a gradient that passes over P less often.

    Reverse mode only. The bias has a gradient too.

    On a CPU that is one device the batch is cut in parts that do not depend on each other: its cores work on one each,
    where they would wait for each other in every product of a head, which is too small to share.
    """
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    if not one_cpu or len(query) % CPU_PARTS or len(query) < CPU_PARTS * CPU_PART_SIZE:
        return _attend(query, key, value, mask, bias)
    batched = (query, key, value, mask, bias)
    cut = [[x] * CPU_PARTS if x is None or len(x) == 1 else jnp.split(x, CPU_PARTS) for x in batched]
    return jnp.concatenate([_attend(*part) for part in zip(*cut)])


@jax.custom_vjp
def _attend(query, key, value, mask, bias):
    """The softmax's gradient needs the mean of dP over the keys, weighted by P.

    The sum of P dP reads two arrays of N M numbers once more; the output times its gradient is the same number
    (Dao et al. 2022, appendix B.2) from N d. dV and dK are computed transposed: so the products run along the rows
    of P and dS, as they lie in memory.
    """
    return _attend_forward(query, key, value, mask, bias)[0]


def _attend_forward(query, key, value, mask, bias):
    weights = attention_weights(query, key, mask, bias).astype(value.dtype)
    mixed = jnp.einsum("BKNM,BKMd->BKNd", weights, value)
    return mixed, (query, key, value, mask, bias, weights, mixed)


def _attend_backward(saved, d_mixed):
    query, key, value, mask, bias, weights, mixed = saved
    scale = query.shape[-1] ** -0.5
    d_value = jnp.einsum("BKNd,BKNM->BKdM", d_mixed, weights).swapaxes(-1, -2)
    d_weights = jnp.einsum("BKNd,BKMd->BKNM", d_mixed, value, preferred_element_type=jnp.float32)
    mean = jnp.sum(d_mixed * mixed, axis=-1, keepdims=True, dtype=jnp.float32)
    d_scores = (weights * (d_weights - mean)).astype(value.dtype)
    if mask is not None:
        d_scores = jnp.where(mask, d_scores, 0)
    d_query = jnp.einsum("BKNM,BKMd->BKNd", d_scores, key) * scale
    d_key = jnp.einsum("BKNd,BKNM->BKdM", query, d_scores).swapaxes(-1, -2) * scale
    d_bias = None if bias is None else _sum_to(d_scores, bias.shape).astype(bias.dtype)
    return d_query, d_key, d_value, None, d_bias


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of broadcasting `shape` to that of x, float32."""
    axes = [axis for axis, size in enumerate(shape) if size != x.shape[axis]]
    return x.sum(axes, keepdims=True, dtype=jnp.float32)


_attend.defvjp(_attend_forward, _attend_backward)

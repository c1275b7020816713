"""Scaled dot-product attention on arrays: softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1)."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vitvlm.core.config import ConfigError, suggest

KINDS = ("auto", "plain")

# On a CPU the batch is cut in so many parts, if each has as many examples as this.
CPU_PARTS, CPU_PART_SIZE = 2, 4


def attention_weights(
    query: Float[Array, "B K N d"],
    key: Float[Array, "B Kv M d"],
    mask: Bool[Array, "#B #K #N #M"] | None = None,
    bias: Float[Array, "#B #K #N #M"] | None = None,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> Float[Array, "B K N M"]:
    """Returns softmax(scale Q K^T + bias) over the keys, float32. A query that may look nowhere looks everywhere alike.

    Args:
      key: of Kv heads, which divide K: each serves K / Kv query heads that follow each other (Ainslie et al. 2023).
      mask: True where a query may look.
      bias: added to the scores.
      scale: of the scores; by default d^-0.5.
      soft_cap: c, where scores s become c tanh(s / c) before the bias is added (Gemma 2, section 2).

    Raises ValueError if Kv does not divide K.
    """
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = _over_heads("BKNd,BKMd->BKNM", query, key, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores)


def attend(
    query: Float[Array, "B K N d"],
    key: Float[Array, "B Kv M d"],
    value: Float[Array, "B Kv M dv"],
    mask: Bool[Array, "#B #K #N #M"] | None = None,
    bias: Float[Array, "#B #K #N #M"] | None = None,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    kind: str = "auto",
) -> Float[Array, "B K N dv"]:
    """`attention_weights(query, key, mask, bias, ...) @ value`, with a gradient that passes over P less often.

    Reverse mode only. The bias has a gradient too. Arguments besides these are those of `attention_weights`.

    On a CPU that is one device the batch is cut in parts that do not depend on each other: its cores work on one each,
    where they would wait for each other in every product of a head, which is too small to share.

    Args:
      value: of Kv heads as the keys; its head dim may differ from theirs.
      kind: how it is computed; all kinds are equal in value and gradient.

    Raises ConfigError for an unknown kind, ValueError if Kv does not divide K.
    """
    if kind not in KINDS:
        raise ConfigError(f"attention: no kind {kind!r}; {suggest(kind, KINDS)}")
    function = functools.partial(_attend, scale, soft_cap)
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    if not one_cpu or len(query) % CPU_PARTS or len(query) < CPU_PARTS * CPU_PART_SIZE:
        return function(query, key, value, mask, bias)
    batched = (query, key, value, mask, bias)
    cut = [[x] * CPU_PARTS if x is None or len(x) == 1 else jnp.split(x, CPU_PARTS) for x in batched]
    return jnp.concatenate([function(*part) for part in zip(*cut)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(scale, soft_cap, query, key, value, mask, bias):
    """The softmax's gradient needs the mean of dP over the keys, weighted by P.

    The sum of P dP reads two arrays of N M numbers once more; the output times its gradient is the same number
    (Dao et al. 2022, appendix B.2) from N d. dV and dK are computed transposed: so the products run along the rows
    of P and dS, as they lie in memory.
    """
    return _attend_forward(scale, soft_cap, query, key, value, mask, bias)[0]


def _attend_forward(scale, soft_cap, query, key, value, mask, bias):
    weights = attention_weights(query, key, mask, bias, scale=scale, soft_cap=soft_cap).astype(value.dtype)
    mixed = _over_heads("BKNM,BKMd->BKNd", weights, value)
    return mixed, (query, key, value, mask, bias, weights, mixed)


def _attend_backward(scale, soft_cap, saved, d_mixed):
    query, key, value, mask, bias, weights, mixed = saved
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    d_value = _to_heads("BKNd,BKNM->BKdM", d_mixed, weights, len(value[0])).swapaxes(-1, -2)
    d_weights = _over_heads("BKNd,BKMd->BKNM", d_mixed, value, preferred_element_type=jnp.float32)
    mean = jnp.sum(d_mixed * mixed, axis=-1, keepdims=True, dtype=jnp.float32)
    d_scores = (weights * (d_weights - mean)).astype(value.dtype)
    if mask is not None:
        d_scores = jnp.where(mask, d_scores, 0)
    d_bias = None if bias is None else _sum_to(d_scores, bias.shape).astype(bias.dtype)
    if soft_cap is not None:
        scores = _over_heads("BKNd,BKMd->BKNM", query * scale, key, preferred_element_type=jnp.float32)
        d_scores = (d_scores * (1 - jnp.tanh(scores / soft_cap) ** 2)).astype(value.dtype)
    d_query = _over_heads("BKNM,BKMd->BKNd", d_scores, key) * scale
    d_key = _to_heads("BKNd,BKNM->BKdM", query, d_scores, len(key[0])).swapaxes(-1, -2) * scale
    return d_query, d_key, d_value, None, d_bias


_attend.defvjp(_attend_forward, _attend_backward)


def _over_heads(product: str, left: Array, right: Array, **how: DTypeLike) -> Array:
    """Computes an einsum of K heads with Kv: the rows of K / Kv left heads lie under each other, nothing is copied."""
    (B, K, N, _), Kv = left.shape, right.shape[1]
    if K % Kv:
        raise ValueError(f"{Kv} heads of keys and values do not divide {K} query heads: change heads or kv_heads")
    if Kv == K:
        return jnp.einsum(product, left, right, **how)
    y = jnp.einsum(product, left.reshape(B, Kv, K // Kv * N, -1), right, **how)
    return y.reshape(B, K, N, -1)


def _to_heads(product: str, left: Array, right: Array, Kv: int) -> Array:
    """Computes an einsum of K heads with K that sums over those of the same of Kv heads."""
    B, K, N, _ = left.shape
    if Kv == K:
        return jnp.einsum(product, left, right)
    return jnp.einsum(product, *(x.reshape(B, Kv, K // Kv * N, -1) for x in (left, right)))


def _sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of broadcasting `shape` to that of x, float32."""
    axes = [axis for axis, size in enumerate(shape) if size != x.shape[axis]]
    return x.sum(axes, keepdims=True, dtype=jnp.float32)

"""Attention that holds its weights P = softmax(scale Q K^T + bias) [B, K, N, M] until the backward pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vitvlm.core.lowering import by_platform

# On a CPU the batch is cut in so many parts, if each has as many examples as this.
CPU_PARTS, CPU_PART_SIZE = 2, 4

# Names of the arrays that a remat policy saves to spare the backward pass attention's products.
SAVED = ("attention_weights", "attention_output")


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
    scores = over_heads("BKNd,BKMd->BKNM", query, key, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(
    scale: float | None,
    soft_cap: float | None,
    query: Float[Array, "B K N d"],
    key: Float[Array, "B Kv M d"],
    value: Float[Array, "B Kv M dv"],
    mask: Bool[Array, "#B #K #N #M"] | None,
    bias: Float[Array, "#B #K #N #M"] | None,
) -> Float[Array, "B K N dv"]:
    """Computes `attention_weights(...) @ value`, with a gradient (reverse mode only) that passes over P less often.

    The softmax's gradient needs the mean of dP over the keys, weighted by P. The sum of P dP reads two arrays of N M
    numbers once more; the output times its gradient is the same number (Dao et al. 2022, appendix B.2) from N d.

    On a CPU that is the program's one device the batch is cut in parts that do not depend on each other: its cores work
    on one each, where they would wait for each other in every product of a head, which is too small to share.
    """
    return _forward(scale, soft_cap, query, key, value, mask, bias)[0]


def _forward(scale, soft_cap, query, key, value, mask, bias):
    function = functools.partial(_weights_and_output, scale, soft_cap)
    batched = (query, key, value, mask, bias)
    weights, mixed = by_platform(function, *batched, one_cpu=_in_parts(function, query))
    weights, mixed = (checkpoint_name(x, name) for x, name in zip((weights, mixed), SAVED, strict=True))
    return mixed, (*batched, weights, mixed)


def _backward(scale, soft_cap, saved, d_mixed):
    query, _, _, _, bias, _, _ = saved
    function = functools.partial(_gradients, scale, soft_cap)
    d_query, d_key, d_value, d_bias = by_platform(function, *saved, d_mixed, one_cpu=_in_parts(function, query))
    if bias is not None:
        axes = [axis for axis, size in enumerate(bias.shape) if size != d_bias.shape[axis]]
        d_bias = d_bias.sum(axes, keepdims=True, dtype=jnp.float32).astype(bias.dtype)
    return d_query, d_key, d_value, None, d_bias


attend.defvjp(_forward, _backward)


def _weights_and_output(scale, soft_cap, query, key, value, mask, bias):
    weights = attention_weights(query, key, mask, bias, scale=scale, soft_cap=soft_cap).astype(value.dtype)
    return weights, over_heads("BKNM,BKMd->BKNd", weights, value)


def _gradients(scale, soft_cap, query, key, value, mask, bias, weights, mixed, d_mixed):
    """Gradients by query, key, value and by the scores with their bias, the last [B, K, N, M] (None without a bias).

    dV and dK are computed transposed: so the products run along the rows of P and dS, as they lie in memory.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    d_value = sum_heads("BKNd,BKNM->BKdM", d_mixed, weights, len(value[0])).swapaxes(-1, -2)
    d_weights = over_heads("BKNd,BKMd->BKNM", d_mixed, value, preferred_element_type=jnp.float32)
    mean = jnp.sum(d_mixed * mixed, axis=-1, keepdims=True, dtype=jnp.float32)
    d_scores = (weights * (d_weights - mean)).astype(value.dtype)
    if mask is not None:
        d_scores = jnp.where(mask, d_scores, 0)
    d_bias = None if bias is None else d_scores
    if soft_cap is not None:
        scores = over_heads("BKNd,BKMd->BKNM", query * scale, key, preferred_element_type=jnp.float32)
        d_scores = (d_scores * (1 - jnp.tanh(scores / soft_cap) ** 2)).astype(value.dtype)
    d_query = over_heads("BKNM,BKMd->BKNd", d_scores, key) * scale
    d_key = sum_heads("BKNd,BKNM->BKdM", query, d_scores, len(key[0])).swapaxes(-1, -2) * scale
    return d_query, d_key, d_value, d_bias


def _in_parts(function: Callable[..., Any], query: Array) -> Callable[..., Any] | None:
    """Returns a function that computes `function` on parts of the batch, or None for too small a batch."""
    B = len(query)
    if B % CPU_PARTS or B < CPU_PARTS * CPU_PART_SIZE:
        return None

    def in_parts(*batched: Array | None) -> Any:
        cut = [[x] * CPU_PARTS if x is None or len(x) == 1 else jnp.split(x, CPU_PARTS) for x in batched]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *(function(*part) for part in zip(*cut)))

    return in_parts


def over_heads(product: str, left: Array, right: Array, **how: DTypeLike) -> Array:
    """Computes an einsum of K heads with Kv: the rows of K / Kv left heads lie under each other, nothing is copied."""
    (B, K, N, _), Kv = left.shape, right.shape[1]
    if K % Kv:
        raise ValueError(f"{Kv} heads of keys and values do not divide {K} query heads: change heads or kv_heads")
    if Kv == K:
        return jnp.einsum(product, left, right, **how)
    y = jnp.einsum(product, left.reshape(B, Kv, K // Kv * N, -1), right, **how)
    return y.reshape(B, K, N, -1)


def sum_heads(product: str, left: Array, right: Array, Kv: int, **how: DTypeLike) -> Array:
    """Computes an einsum of K heads with K that sums over the heads that share one of Kv."""
    B, K, N, _ = left.shape
    if Kv != K:
        left, right = (x.reshape(B, Kv, K // Kv * N, -1) for x in (left, right))
    return jnp.einsum(product, left, right, **how)

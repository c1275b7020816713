"""Attention that holds its weights P = softmax(scale Q K^T + bias) [B, K, N, M] until the backward pass."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vitvlm.core.lowering import by_platform

# On a CPU the batch is cut in so many parts, if each has as many examples as this.
CPU_PARTS, CPU_PART_SIZE = 2, 4

# On a TPU the weights are not written to memory if there are so many queries.
TPU_QUERIES = 8

TPU_LANES = 128  # numbers that a TPU has beside each other in a register

# Names of the arrays that a remat policy saves to spare the backward pass attention's products.
SAVED = ("attention_weights", "attention_total", "attention_output")


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
    return jax.nn.softmax(_scores(scale, soft_cap, query, key, mask, bias))


def _scores(scale, soft_cap, query, key, mask, bias) -> Float[Array, "B K N M"]:
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = over_heads("BKNd,BKMd->BKNM", query, key, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return scores


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

    On a TPU alone the weights themselves are not written to memory: see `_shifted_and_output`.
    """
    return _forward(scale, soft_cap, query, key, value, mask, bias)[0]


def _forward(scale, soft_cap, query, key, value, mask, bias):
    function = functools.partial(_weights_and_output, scale, soft_cap)
    batched = (query, key, value, mask, bias)
    on_tpu = functools.partial(_shifted_and_output, scale, soft_cap)
    outputs = by_platform(function, *batched, one_cpu=_in_parts(function, query), one_tpu=_of_many(on_tpu, query))
    weights, total, mixed = (checkpoint_name(x, name) for x, name in zip(outputs, SAVED, strict=True))
    return mixed, (*batched, weights, total, mixed)


def _backward(scale, soft_cap, saved, d_mixed):
    query, bias = saved[0], saved[4]
    function = functools.partial(_gradients, scale, soft_cap)
    on_tpu = functools.partial(_gradients_of_shifted, scale, soft_cap)
    cases = {"one_cpu": _in_parts(function, query), "one_tpu": _of_many(on_tpu, query)}
    d_query, d_key, d_value, d_bias = by_platform(function, *saved, d_mixed, **cases)
    if bias is not None:
        axes = [axis for axis, size in enumerate(bias.shape) if size != d_bias.shape[axis]]
        d_bias = d_bias.sum(axes, keepdims=True, dtype=jnp.float32).astype(bias.dtype)
    return d_query, d_key, d_value, None, d_bias


attend.defvjp(_forward, _backward)


def _weights_and_output(scale, soft_cap, query, key, value, mask, bias):
    """Returns P, nothing in place of what a TPU keeps beside it, and P V."""
    weights = attention_weights(query, key, mask, bias, scale=scale, soft_cap=soft_cap).astype(value.dtype)
    return weights, jnp.zeros(query.shape[:3], jnp.float32), over_heads("BKNM,BKMd->BKNd", weights, value)


def _shifted_and_output(scale, soft_cap, query, key, value, mask, bias):
    """Returns X = scores - their maximum over the keys, in the dtype of the values, log sum exp X, and P V.

    A TPU is fast at products and slow at passes over N M numbers. So the product that makes the scores subtracts the
    maximum and sums as it writes X, the only N M numbers that are written, and every product with P = exp(X) / sum
    takes the exponential of X as it reads it. X as bfloat16 serves as well as P would: it is wrong by 2^-9 |X| at most,
    exp X then by 2^-9 |X| exp X, less than the 2^-9 of a P near 1.
    """
    query, key, value = map(_tokens_in_lanes, (query, key, value))
    scores = _tokens_in_lanes(_scores(scale, soft_cap, query, key, mask, bias))
    shifted = (scores - scores.max(axis=-1, keepdims=True)).astype(value.dtype)
    weights = jnp.exp(shifted.astype(jnp.float32))
    total = weights.sum(axis=-1)
    mixed = over_heads("BKNM,BKMd->BKNd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return shifted, jnp.log(total), (_tokens_in_lanes(mixed) / total[..., None]).astype(value.dtype)


def _gradients_of_shifted(scale, soft_cap, query, key, value, mask, bias, shifted, log_total, mixed, d_mixed):
    query, key, value, mixed, d_mixed = map(_tokens_in_lanes, (query, key, value, mixed, d_mixed))
    weights = jnp.exp(shifted.astype(jnp.float32) - log_total[..., None])
    saved = (mask, bias, weights, log_total, mixed)
    place = (lambda x: x) if scale == 1 else _tokens_in_lanes  # times 1 is no computation
    by_product = value.dtype == jnp.bfloat16 and query.shape[2] >= TPU_LANES
    sums = _dots_by_product if by_product else _dots
    return _gradients(scale, soft_cap, query, key, value, *saved, d_mixed, place=place, dots=sums)


def _of_many(function: Callable[..., Any], query: Array) -> Callable[..., Any] | None:
    """Returns the function, or None for a few queries, such as one behind a cache: its keys would be copied."""
    return function if query.shape[2] >= TPU_QUERIES else None


def _tokens_in_lanes(x: Float[Array, "B K N _"]) -> Float[Array, "B K N _"]:
    """Has the compiler lay N along a TPU's lanes; its own choices, for short sequences and for scores, cost copies.

    What is returned from `attend` must not be such an array but computed from it: JAX takes an array that leaves a
    program in a layout of its own for one in the usual layout.
    """
    return with_layout_constraint(x, Layout((0, 1, 3, 2)))


@jax.custom_vjp
def tokens_in_lanes(x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    """Returns x: projected tokens, which a TPU then writes as `attend` reads them instead of copying them for it.

    That pays where tokens fill the lanes, so there is nothing to it for fewer. It has to be followed by a computation:
    see `_tokens_in_lanes`.
    """
    if x.shape[1] < TPU_LANES:
        return x
    return by_platform(lambda x: x, x, one_tpu=lambda x: with_layout_constraint(x, Layout((0, 2, 1))))


tokens_in_lanes.defvjp(lambda x: (tokens_in_lanes(x), None), lambda _, d_x: (d_x,))


def _dots(left: Float[Array, "B K N d"], right: Float[Array, "B K N d"]) -> Float[Array, "B K N 1"]:
    """Sums left times right over d, in float32."""
    return jnp.sum(left * right, axis=-1, keepdims=True, dtype=jnp.float32)


def _dots_by_product(left: Float[Array, "B K N d"], right: Float[Array, "B K N d"]) -> Float[Array, "B K N 1"]:
    """Sums left times right, rounded as they are, over d by a product with ones: d lies across a TPU's registers.

    Each head's row of the ones has zeros for the other heads, so that one product serves them all.
    """
    B, K, N, d = left.shape
    rows = (left * right).swapaxes(2, 3).reshape(B, K * d, N)
    ones = jnp.repeat(jnp.eye(K, dtype=left.dtype), d, axis=1)
    return jnp.einsum("BeN,Ke->BKN", rows, ones, preferred_element_type=jnp.float32)[..., None]


def _gradients(
    scale, soft_cap, query, key, value, mask, bias, weights, _, mixed, d_mixed, place=lambda x: x, dots=_dots
):
    """Gradients by query, key, value and by the scores with their bias, the last [B, K, N, M] (None without a bias).

    dV and dK are computed transposed: so the products run along the rows of P and dS, as they lie in memory. `place`
    says how dQ and dK lie, and dV if it is narrower than the weights; `dots` computes what `_dots` does.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    product = functools.partial(sum_heads, "BKNd,BKNM->BKdM", d_mixed, weights.astype(value.dtype), len(value[0]))
    d_value = product(preferred_element_type=weights.dtype).swapaxes(-1, -2)
    d_value = d_value if weights.dtype == value.dtype else place(d_value).astype(value.dtype)
    d_weights = over_heads("BKNd,BKMd->BKNM", d_mixed, value, preferred_element_type=jnp.float32)
    d_scores = (weights * (d_weights - dots(d_mixed, mixed))).astype(value.dtype)
    if mask is not None:
        d_scores = jnp.where(mask, d_scores, 0)
    d_bias = None if bias is None else d_scores
    if soft_cap is not None:
        scores = over_heads("BKNd,BKMd->BKNM", query * scale, key, preferred_element_type=jnp.float32)
        d_scores = (d_scores * (1 - jnp.tanh(scores / soft_cap) ** 2)).astype(value.dtype)
    d_query = over_heads("BKNM,BKMd->BKNd", d_scores, key)
    d_key = sum_heads("BKNd,BKNM->BKdM", query, d_scores, len(key[0])).swapaxes(-1, -2)
    return place(d_query) * scale, place(d_key) * scale, d_value, d_bias


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

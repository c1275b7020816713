"""Attention for long sequences, in blocks of keys: no array of N M numbers lives until the backward pass.

The forward pass keeps each query's running maximum and sum (Milakov and Gimelshein 2018), the backward pass computes
the weights again from them (Rabe and Staats 2021; Dao et al. 2022). Memory grows with N and with M, not with their
product, but for a mask or bias that is given with N M numbers, and for the gradient of such a bias. Rules, such as
that of causality, are evaluated for a block at a time.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vitvlm.nn.attend_plain import over_heads, sum_heads
from vitvlm.nn.visibility import Visibility, both

BLOCK = 512  # keys at a time, at most
LOWEST = float(jnp.finfo(jnp.float32).min)


def forward(
    scale: float | None,
    soft_cap: float | None,
    query: Float[Array, "B K N d"],
    key: Float[Array, "B Kv M d"],
    value: Float[Array, "B Kv M dv"],
    mask: Bool[Array, "#B #K #N #M"] | None,
    bias: Float[Array, "#B #K #N #M"] | None,
    rules: Visibility | None = None,
) -> tuple[Float[Array, "B K N dv"], Float[Array, "B K N 1"], Float[Array, "B K N 1"]]:
    """Returns the output, each query's highest score h, and the sum of exp(scores - h) over its keys."""
    size, count = _sizes(key)
    score = _scores(scale, soft_cap, query, key, mask, bias, rules)

    def step(carry, index):
        highest, total, mixed = carry
        scores, *_ = score(index)
        above = jnp.maximum(highest, scores.max(axis=-1, keepdims=True))
        weights, shrink = jnp.exp(scores - above), jnp.exp(highest - above)
        total = total * shrink + weights.sum(axis=-1, keepdims=True)
        update = _over("BKNM,BKMd->BKNd", weights.astype(value.dtype), _cut(value, index, size, axis=2))
        return (above, total, mixed * shrink + update), None

    one = jnp.zeros((*query.shape[:3], 1), jnp.float32)
    start = (one + LOWEST, one, jnp.zeros((*query.shape[:3], value.shape[3]), jnp.float32))
    (highest, total, mixed), _ = jax.lax.scan(step, start, jnp.arange(count))
    return (mixed / total).astype(value.dtype), highest, total


def gradients(scale, soft_cap, query, key, value, mask, bias, rules, mixed, highest, total, d_mixed):
    """Returns the gradients by query, key, value and bias (None without one), from what `forward` took and returned."""
    size, count = _sizes(key)
    score = _scores(scale, soft_cap, query, key, mask, bias, rules)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    Kv, M, dtype = *key.shape[1:3], value.dtype
    mean = jnp.sum(d_mixed * mixed, axis=-1, keepdims=True, dtype=jnp.float32)
    stacked = bias is not None and bias.shape[3] != 1

    def step(carry, index):
        d_query, d_bias = carry
        scores, slope, seen = score(index)
        weights = jnp.exp(scores - highest) / total
        d_value = _sum("BKNd,BKNM->BKdM", d_mixed, weights.astype(dtype), Kv)
        d_scores = weights * (_over("BKNd,BKMd->BKNM", d_mixed, _cut(value, index, size, axis=2)) - mean)
        if seen is not None:
            d_scores = jnp.where(seen, d_scores, 0)
        each = None
        if bias is not None:
            axes = [axis for axis, length in enumerate(bias.shape) if length == 1]
            each = d_scores.sum(axes, keepdims=True)
            d_bias, each = (d_bias, each) if stacked else (d_bias + each, None)
        d_scores = (d_scores * slope).astype(dtype)
        d_query = d_query + _over("BKNM,BKMd->BKNd", d_scores, _cut(key, index, size, axis=2))
        return (d_query, d_bias), (d_value, _sum("BKNd,BKNM->BKdM", query, d_scores, Kv), each)

    start = jnp.zeros(query.shape, jnp.float32)
    start = (start, None if bias is None or stacked else jnp.zeros(bias.shape, jnp.float32))
    (d_query, d_bias), (d_value, d_key, each) = jax.lax.scan(step, start, jnp.arange(count))

    def along_keys(blocks: Float[Array, "count B Kv d size"]) -> Float[Array, "B Kv M d"]:
        joined = jnp.moveaxis(blocks, 0, 3).reshape(*blocks.shape[1:4], count * size)
        return joined[..., :M].swapaxes(2, 3)

    if stacked:
        d_bias = jnp.moveaxis(each, 0, 3).reshape(*each.shape[1:4], count * size)[..., :M]
    d_bias = None if bias is None else d_bias.astype(bias.dtype)
    d_key, d_value = along_keys(d_key) * scale, along_keys(d_value)
    return (d_query * scale).astype(query.dtype), d_key.astype(key.dtype), d_value.astype(dtype), d_bias


_over = functools.partial(over_heads, preferred_element_type=jnp.float32)
_sum = functools.partial(sum_heads, preferred_element_type=jnp.float32)


def _sizes(key: Float[Array, "B Kv M d"]) -> tuple[int, int]:
    """Keys in a block, and how many blocks: as few and as equal as can be."""
    M = key.shape[2]
    count = max(1, math.ceil(M / BLOCK))
    return math.ceil(M / count), count


def _cut(x: Array, index: Int[Array, ""], size: int, axis: int) -> Array:
    """Takes block `index` of x along an axis; the last block goes on behind the end with what is nearest.

    An axis of length 1 stands for every block.
    """
    if x.shape[axis] == 1:
        return x
    if x.shape[axis] % size == 0:
        return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)
    return jnp.take(x, index * size + jnp.arange(size), axis, mode="clip")


def _scores(scale, soft_cap, query, key, mask, bias, rules) -> Callable[[Array], tuple[Array, ...]]:
    """Returns a function of a block that gives its scores, -inf behind the last key, the soft cap's slope there, and
    where queries see its keys (None: everywhere)."""
    (size, _), M = _sizes(key), key.shape[2]
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)

    def score(index: Int[Array, ""]) -> tuple[Array, Array | float, Array | None]:
        scores, slope = _over("BKNd,BKMd->BKNM", query, _cut(key, index, size, axis=2)), 1.0
        if soft_cap is not None:
            capped = jnp.tanh(scores / soft_cap)
            scores, slope = soft_cap * capped, 1 - capped**2
        if bias is not None:
            scores = scores + _cut(bias, index, size, axis=3)
        seen = None if mask is None else _cut(mask, index, size, axis=3)
        if rules is not None:
            seen = both(seen, rules.of_keys(lambda x, axis: _cut(x, index, size, axis)))
        if seen is not None:
            scores = jnp.where(seen, scores, LOWEST)
        return jnp.where(index * size + jnp.arange(size) < M, scores, -jnp.inf), slope, seen

    return score

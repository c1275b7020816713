"""Scaled dot-product attention on arrays: softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# On a CPU the batch is cut in so many parts, if each has as many examples as this.
CPU_PARTS, CPU_PART_SIZE = 2, 4


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

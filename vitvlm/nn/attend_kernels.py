"""Attention by kernels that others wrote for one kind of device: cuDNN's on a GPU, JAX's Pallas splash on a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vitvlm.nn.visibility import Visibility, both

LANES = 128  # of a TPU's registers: splash takes head dims and blocks of whole multiples


def splash(
    scale: float | None,
    soft_cap: float | None,
    query: Float[Array, "B K N d"],
    key: Float[Array, "B Kv M d"],
    value: Float[Array, "B Kv M dv"],
    mask: Bool[Array, "#B 1 1 #M"] | None,
    bias: None = None,
    rules: None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B K N dv"]:
    """Computes attention by `jax.experimental.pallas.ops.tpu.splash_attention`, with heads and tokens padded to fit.

    With `interpret` it runs on any platform, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (B, K, N, d), (M, dv) = query.shape, value.shape[2:]
    query = query * (d**-0.5 if scale is None else scale)
    seen = jnp.ones((B, M), bool) if mask is None else jnp.broadcast_to(mask[:, 0, 0], (B, M))
    # Where no key may be looked at, all scores are alike: 0.
    some = seen.any(axis=1)
    query, seen = jnp.where(some[:, None, None, None], query, 0), seen | ~some[:, None]

    rows, columns = (_block(length) for length in (N, M))
    query, key, value = _pad(query, 2, rows), _pad(key, 2, columns), _pad(value, 2, columns)
    query, key, value = (_pad(x, 3, LANES) for x in (query, key, value))
    blocks = kernels.BlockSizes(
        block_q=rows, block_kv=columns, block_kv_compute=columns, block_q_dkv=rows, block_kv_dkv=columns,
        block_kv_dkv_compute=columns, block_q_dq=rows, block_kv_dq=columns,
    )  # fmt: skip
    full = masks.MultiHeadMask([masks.FullMask((query.shape[2], key.shape[2]))] * K)
    kernel = kernels.make_splash_mha(
        full, head_shards=1, q_seq_shards=1, block_sizes=blocks, attn_logits_soft_cap=soft_cap, interpret=interpret
    )
    # A query looks at the keys of its own segment: those of 1.
    segments = kernels.SegmentIds(jnp.ones((B, query.shape[2]), jnp.int32), _pad(seen.astype(jnp.int32), 1, columns))
    mixed = jax.vmap(kernel)(query, key, value, segments)
    return mixed[:, :, :N, :dv].astype(value.dtype)


def splash_lacks(query, key, value, mask, bias, rules, soft_cap) -> str | None:
    """Tells what of a call `splash` cannot do; None if it can do all."""
    if bias is not None:
        return "a bias"
    if mask is not None and mask.shape[1:3] != (1, 1):
        return "a mask that differs between queries or heads (only one of keys, [B, 1, 1, M])"
    if rules is not None:
        return "causal or local attention, or segments"
    return None


def cudnn(
    scale: float | None,
    soft_cap: None,
    query: Float[Array, "B K N d"],
    key: Float[Array, "B Kv M d"],
    value: Float[Array, "B Kv M d"],
    mask: Bool[Array, "#B #K #N #M"] | None,
    bias: Float[Array, "#B #K #N #M"] | None,
    rules: Visibility | None = None,
    *,
    implementation: str = "cudnn",
) -> Float[Array, "B K N d"]:
    """Computes attention by `jax.nn.dot_product_attention`, whose tokens come before the heads."""
    N, M = query.shape[2], key.shape[2]
    mask = both(mask, rules)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], N, M)).astype(query.dtype)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], N, M))
    heads = (x.swapaxes(1, 2) for x in (query, key, value))
    mixed = jax.nn.dot_product_attention(*heads, bias, mask, scale=scale, implementation=implementation)
    return mixed.swapaxes(1, 2)


def cudnn_lacks(query, key, value, mask, bias, rules, soft_cap) -> str | None:
    """Tells what of a call `cudnn` cannot do; None if it can do all."""
    if soft_cap is not None:
        return "a soft cap"
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"{query.dtype} (set dtype to bfloat16 or float16)"
    (N, d), (M, dv) = query.shape[2:], value.shape[2:]
    if d != dv or d % 8 or d > 128:
        return f"heads of {d} numbers and values of {dv} (one multiple of 8 up to 128 for both)"
    masked = mask is not None or rules is not None
    if (masked or bias is not None) and (N % 2 or M % 2):
        return f"a mask or bias of {N} queries and {M} keys (only even numbers of them)"
    if masked and query.dtype == jnp.float16:
        return "a mask in float16, where its numbers do not outweigh the scores (set dtype to bfloat16)"
    return None


def _block(length: int) -> int:
    """Tokens in a block: a multiple of LANES up to 512, so that little is padded."""
    return min(4 * LANES, int(np.ceil(length / LANES)) * LANES)


def _pad(x: Array, axis: int, multiple: int) -> Array:
    """Adds zeros behind an axis until `multiple` divides it."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)

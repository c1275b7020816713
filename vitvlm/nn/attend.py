"""Scaled dot-product attention on arrays: softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1)."""

import jax
from jaxtyping import Array, Bool, Float

from vitvlm.core.config import ConfigError, suggest
from vitvlm.nn import attend_long, attend_plain
from vitvlm.nn.attend_plain import attention_weights
from vitvlm.nn.visibility import Visibility, both

__all__ = ["KINDS", "attend", "attention_weights", "is_plain"]

KINDS = ("auto", "plain", "blockwise", "cudnn", "splash")

LONG = 2**20  # of so many pairs of a query and a key on, "auto" keeps none of them


@jax.jit(inline=True, static_argnames=("scale", "soft_cap", "kind"))
def attend(
    query: Float[Array, "B K N d"],
    key: Float[Array, "B Kv M d"],
    value: Float[Array, "B Kv M dv"],
    mask: Bool[Array, "#B #K #N #M"] | None = None,
    bias: Float[Array, "#B #K #N #M"] | None = None,
    rules: Visibility | None = None,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    kind: str = "auto",
) -> Float[Array, "B K N dv"]:
    """`attention_weights(query, key, both(mask, rules), bias, ...) @ value`, computed as is fast where it runs.

    Reverse mode only. The bias has a gradient too. Arguments besides these are those of `attention_weights`.

    Args:
      value: of Kv heads as the keys; its head dim may differ from theirs.
      rules: who sees whom besides the mask; of long sequences block by block, so that there are no N M numbers.
      kind: how it is computed; all are equal in value and gradient. "plain" holds the weights [B, K, N, M] until the
        backward pass. The others' memory grows with N alone: "blockwise" goes over blocks of keys on any platform;
        "cudnn" is the kernel of `jax.nn.dot_product_attention` (a GPU, half precision), "splash" JAX's own for a TPU
        (no bias, no rules, a mask of keys alone; in a program for several devices only within `jax.shard_map`).
        "auto" is "plain" for short sequences; for long ones the platform's kernel where it can do what is asked, else
        "blockwise".

    Raises ConfigError for an unknown kind or one that cannot do what is asked, ValueError if Kv does not divide K.
    """
    if kind not in KINDS:
        raise ConfigError(f"attention: no kind {kind!r}; {suggest(kind, KINDS)}")
    if is_plain(kind, query.shape[2], key.shape[2]):
        return attend_plain.attend(scale, soft_cap, query, key, value, both(mask, rules), bias)
    return attend_long.attend(kind, scale, soft_cap, query, key, value, mask, bias, rules)


def is_plain(kind: str, queries: int, keys: int) -> bool:
    """Tells whether `attend` holds the weights of so many queries and keys until the backward pass."""
    return kind == "plain" or (kind == "auto" and queries * keys < LONG)

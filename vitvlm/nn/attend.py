"""Scaled dot-product attention on arrays: softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1)."""

import jax
from jaxtyping import Array, Bool, Float

from vitvlm.core.config import ConfigError, suggest
from vitvlm.nn import attend_plain
from vitvlm.nn.attend_plain import attention_weights

__all__ = ["KINDS", "attend", "attention_weights"]

KINDS = ("auto", "plain")


@jax.jit(inline=True, static_argnames=("scale", "soft_cap", "kind"))
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
    """`attention_weights(query, key, mask, bias, ...) @ value`, without holding more than the platform likes.

    Reverse mode only. The bias has a gradient too. Arguments besides these are those of `attention_weights`.

    Args:
      value: of Kv heads as the keys; its head dim may differ from theirs.
      kind: how it is computed; all kinds are equal in value and gradient.

    Raises ConfigError for an unknown kind, ValueError if Kv does not divide K.
    """
    if kind not in KINDS:
        raise ConfigError(f"attention: no kind {kind!r}; {suggest(kind, KINDS)}")
    return attend_plain.attend(scale, soft_cap, query, key, value, mask, bias)

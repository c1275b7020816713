"""Shared parts of language models: masks over the places of a sequence, positions, whose logits are asked for."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config

LOGITS = ("all", "last", "none")


def check_logits(logits: str) -> None:
    """Raises ConfigError unless it is "all", "last" or "none"."""
    if logits not in LOGITS:
        raise config.ConfigError(f"logits: {logits!r}; {config.suggest(logits, LOGITS)}")


def over_keys(
    mask: Shaped[Array, "B M"] | None, besides: Bool[Array, "#B #K #L M"] | None = None
) -> Bool[Array, "#B #K #L M"] | None:
    """A mask of real tokens as one of attention, joined with another; None if both are."""
    if mask is None:
        return besides
    keys = mask.astype(bool)[:, None, None, :]
    return keys if besides is None else keys & besides


def count_positions(mask: Shaped[Array, "B M"] | None, places: Int[Array, "L"], B: int) -> Int[Array, "B L"]:
    """Positions of the tokens at those places: how many real ones come before; 0 for padding before the first."""
    if mask is None:
        return jnp.broadcast_to(places, (B, len(places)))
    count = jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1
    return jnp.maximum(jnp.take(count, places, axis=1, mode="clip"), 0)


def last_real(
    tokens: Float[Array, "B L D"], mask: Shaped[Array, "B M"] | None, places: Int[Array, "L"]
) -> Float[Array, "B 1 D"]:
    """The last real token of each text among those at the places; of a text that is all padding there, the last."""
    if mask is None:
        return tokens[:, -1:]
    real = jnp.take(mask.astype(bool), places, axis=1, mode="clip")
    last = real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
    return jnp.take_along_axis(tokens, last[:, None, None], axis=1)

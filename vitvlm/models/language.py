"""Shared parts of language models: masks over the places of a sequence, positions, whose logits are asked for."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core import config
from vitvlm.nn.caches import Int8Cache, RingCache

LOGITS = ("all", "last", "none")

Cache = Mapping[str, Any]  # {"attention": the layers' caches}, as `nn.stack.Stacked.cache` is


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


def extent(cache: Cache | None, L: int) -> tuple[Int[Array, ""] | int, int | None]:
    """Returns how many tokens came before, and how many places the sequence has; None if it has no end."""
    if cache is None:
        return 0, L
    layers = cache["attention"] if isinstance(cache["attention"], tuple) else (cache["attention"],)
    layers = [each.values if isinstance(each, Int8Cache) else each for each in layers]
    rooms = [each.key.shape[-2] for each in layers if not isinstance(each, RingCache)]
    return layers[0].length[0], rooms[0] if rooms else None


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

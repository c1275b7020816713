"""Says who sees whom in self-attention, by rules instead of a number for each pair of a query and a key."""

from collections.abc import Callable

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@flax.struct.dataclass
class Visibility:
    """Rules that all have to hold where a query sees a key. They take N + M numbers, where a mask takes N M.

    Fields:
      places [N], key_places [M]: of queries and keys in the sequence. A key at a negative place is none.
      prefix [B, N], key_prefix [B, M]: True at tokens that see each other whatever their order and distance.
      segments [B, N], key_segments [B, M]: numbers of the texts that are packed in a row; each sees itself alone.
      alone [B, N]: True at queries that see the key at their own place only, whatever the rest says.
      causal: whether a query sees no key behind itself.
      local: how many of the latest keys a query sees, its own included; without `causal`, as many on the other side.
    """

    places: Int[Array, "N"]
    key_places: Int[Array, "M"]
    prefix: Bool[Array, "B N"] | None = None
    key_prefix: Bool[Array, "B M"] | None = None
    segments: Int[Array, "B N"] | None = None
    key_segments: Int[Array, "B M"] | None = None
    alone: Bool[Array, "B N"] | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    local: int | None = flax.struct.field(pytree_node=False, default=None)

    def mask(self, given: Bool[Array, "#B #K #N #M"] | None = None) -> Bool[Array, "#B #K N M"]:
        """True where a query sees a key, by a given mask too."""
        behind = self.places[:, None] - self.key_places[None, :]
        seen = jnp.broadcast_to(self.key_places >= 0, behind.shape)
        if self.causal:
            seen &= behind >= 0
        if self.local is not None:
            seen &= jnp.abs(behind) < self.local
        seen = seen[None, None]
        if self.prefix is not None:
            seen |= self.prefix[:, None, :, None] & self.key_prefix[:, None, None, :]
        if self.segments is not None:
            seen &= self.segments[:, None, :, None] == self.key_segments[:, None, None, :]
        if given is not None:
            seen = given & seen
        return seen if self.alone is None else jnp.where(self.alone[:, None, :, None], behind == 0, seen)

    def of_keys(self, take: Callable[[Array, int], Array]) -> "Visibility":
        """Returns the rules of some of the keys: `take(x, axis)` gives those of x, whose keys lie along the axis."""

        def rows(x: Array | None) -> Array | None:
            return None if x is None else take(x, 1)

        return self.replace(
            key_places=take(self.key_places, 0),
            key_prefix=rows(self.key_prefix),
            key_segments=rows(self.key_segments),
        )


def both(mask: Bool[Array, "#B #K #N #M"] | None, rules: Visibility | None) -> Bool[Array, "#B #K #N #M"] | None:
    """Returns a mask with the rules as one; None for none of either."""
    return mask if rules is None else rules.mask(mask)


def rules_of(
    places: Int[Array, "N"],
    key_places: Int[Array, "M"],
    *,
    causal: bool = False,
    local: int | None = None,
    cached: bool = False,
    prefix: Bool[Array, "B N"] | None = None,
    segments: Int[Array, "B N"] | None = None,
    alone: Bool[Array, "B N"] | None = None,
) -> Visibility | None:
    """Returns the rules for a call's tokens, or None where all see all.

    Args:
      cached: whether keys may come from a cache: some are none, and those of the call lie behind `places[0]`.
      prefix, segments, alone: of the call's tokens; see `Visibility`. A prefix says nothing where all see all.
    """
    ordered = causal or local is not None or cached
    if not ordered and segments is None and alone is None:
        return None
    key_prefix = None
    if not ordered:
        prefix = None
    if prefix is not None:
        at = key_places - places[0]
        of_call = (at >= 0) & (at < prefix.shape[1])
        key_prefix = jnp.take(prefix, at, axis=1, mode="clip") & of_call
    return Visibility(places, key_places, prefix, key_prefix, segments, segments, alone, causal, local)

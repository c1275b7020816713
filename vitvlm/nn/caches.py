"""Keys and values that attention keeps from one call to the next.

A cache of self-attention has the interface of `Cache`; `Attention` uses nothing else of it. `KVCache` keeps all
tokens; a ring buffer for layers that look back only so far keeps the last ones, and is another such class.
"""

from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int


@runtime_checkable
class Cache(Protocol):
    """Interface of the keys and values of one layer's self-attention.

    Attributes:
      key, value: [B, Kv, M, d], of the M tokens that it has room for.
      length: how many tokens of the sequence have been appended so far, an int32 scalar. Token i of the sequence is
        said to be at place i.
    """

    key: Any
    value: Any
    length: Any

    def append(self, key: Float[Array, "B Kv N d"], value: Float[Array, "B Kv N d"]) -> "Cache":
        """The cache with N tokens more."""

    def places(self) -> Int[Array, "M"]:
        """The place in the sequence of each key, -1 where there is none yet."""

    def of_places(self, mask: Bool[Array, "#B #K #N #P"]) -> Bool[Array, "#B #K #N #M"]:
        """A mask over the places of the sequence as one over the keys."""


@flax.struct.dataclass
class KVCache:
    """Cache of a layer that keeps every token: token i of the sequence is key i.

    Appending beyond its room cannot raise when compiled: the keys and values that do not fit are NaN, and so is all
    that is computed from them.
    """

    key: Any
    value: Any
    length: Any

    @classmethod
    def zeros(
        cls, depth: int | None, batch: int, heads: int, room: int, head_dim: int, dtype: DTypeLike = jnp.float32
    ) -> "KVCache":
        """An empty cache of `depth` layers, with room for so many tokens; of one layer if the depth is None."""
        lead = () if depth is None else (depth,)
        empty = jnp.zeros((*lead, batch, heads, room, head_dim), dtype)
        return cls(empty, empty, jnp.zeros(lead, jnp.int32))

    def append(self, key: Float[Array, "B Kv N d"], value: Float[Array, "B Kv N d"]) -> "KVCache":
        if key.shape[2] > self.key.shape[2]:
            raise ValueError(f"{key.shape[2]} tokens, but the cache has room for {self.key.shape[2]}: make it larger")

        fits = self.length + key.shape[2] <= self.key.shape[2]

        def put(kept: Array, new: Array) -> Array:
            new = jnp.where(fits, new, jnp.nan).astype(kept.dtype)
            return jax.lax.dynamic_update_slice(kept, new, (0, 0, self.length, 0))

        return self.replace(key=put(self.key, key), value=put(self.value, value), length=self.length + key.shape[2])

    def places(self) -> Int[Array, "M"]:
        place = jnp.arange(self.key.shape[2])
        return jnp.where(place < self.length, place, -1)

    def of_places(self, mask: Bool[Array, "#B #K #N #P"]) -> Bool[Array, "#B #K #N #M"]:
        return mask


@flax.struct.dataclass
class ContextCache:
    """Keys and values of cross-attention, computed in the call that brings the context and used in those without.

    Fields: key, value [B, Kv, M, d]; None before the first call.
    """

    key: Any = None
    value: Any = None

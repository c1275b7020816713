"""Keys and values that attention keeps from one call to the next.

A cache of self-attention has the interface of `Cache`; `Attention` uses nothing else of it. `KVCache` keeps all tokens,
`RingCache` the last ones, for layers that look back only so far.
"""

from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from vitvlm.core.lowering import by_platform


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

    def append(self, key: Shaped[Array, "B Kv N d"], value: Shaped[Array, "B Kv N d"]) -> "Cache":
        """The cache with N tokens more, as these tokens look at it."""

    def kept(self) -> "Cache":
        """The cache as the next call takes it, once the tokens that were appended have looked."""

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

    def append(self, key: Shaped[Array, "B Kv N d"], value: Shaped[Array, "B Kv N d"]) -> "KVCache":
        if key.shape[2] > self.key.shape[2]:
            raise ValueError(f"{key.shape[2]} tokens, but the cache has room for {self.key.shape[2]}: make it larger")

        fits = self.length + key.shape[2] <= self.key.shape[2]

        def put(kept: Array, new: Array) -> Array:
            new = jnp.where(fits, new, jnp.nan).astype(kept.dtype)
            return put_in_place(kept, new, self.length)

        return self.replace(key=put(self.key, key), value=put(self.value, value), length=self.length + key.shape[2])

    def kept(self) -> "KVCache":
        return self

    def places(self) -> Int[Array, "M"]:
        place = jnp.arange(self.key.shape[2])
        return jnp.where(place < self.length, place, -1)

    def of_places(self, mask: Bool[Array, "#B #K #N #P"]) -> Bool[Array, "#B #K #N #M"]:
        return mask


@flax.struct.dataclass
class RingCache:
    """Cache of a layer whose tokens look back only so far: token i of the sequence is key i modulo the room R.

    With room for as many tokens as a query sees, its own included, it holds all that the next one needs, however long
    the sequence. With r more, the last r tokens can be taken back by setting `length` back (speculative decoding).
    """

    key: Any
    value: Any
    length: Any

    @classmethod
    def zeros(
        cls, depth: int | None, batch: int, heads: int, room: int, head_dim: int, dtype: DTypeLike = jnp.float32
    ) -> "RingCache":
        """An empty cache, as `KVCache.zeros` makes it."""
        return cls(**vars(KVCache.zeros(depth, batch, heads, room, head_dim, dtype)))

    def append(self, key: Shaped[Array, "B Kv N d"], value: Shaped[Array, "B Kv N d"]) -> "RingCache | Unrolled":
        if key.shape[2] == 1:  # what its key takes the place of is what it sees no more
            return self._put(key, value)
        key, value = key.astype(self.key.dtype), value.astype(self.value.dtype)
        joined = (jnp.concatenate(pair, axis=2) for pair in ((self.key, key), (self.value, value)))
        return Unrolled(*joined, self.length + key.shape[2], self)

    def _put(self, key: Shaped[Array, "B Kv N d"], value: Shaped[Array, "B Kv N d"]) -> "RingCache":
        """The ring with the last of N tokens that it has room for in the place of the oldest."""
        N, R = key.shape[2], self.key.shape[2]
        last = min(N, R)
        slots = (self.length + N - last + jnp.arange(last)) % R

        def put(kept: Array, new: Array) -> Array:
            new = new[:, :, N - last :].astype(kept.dtype)
            if last == 1:
                return put_in_place(kept, new, slots[0])
            return kept.at[:, :, slots].set(new)

        return self.replace(key=put(self.key, key), value=put(self.value, value), length=self.length + N)

    def kept(self) -> "RingCache":
        return self

    def places(self) -> Int[Array, "M"]:
        R = self.key.shape[2]
        place = self.length - 1 - (self.length - 1 - jnp.arange(R)) % R  # the last one in each slot
        return jnp.maximum(place, -1)

    def of_places(self, mask: Bool[Array, "#B #K #N #P"]) -> Bool[Array, "#B #K #N #M"]:
        return _at(mask, self.places())


@flax.struct.dataclass
class Unrolled:
    """A ring as several tokens look at it: behind its keys are theirs, none of which has displaced another yet.

    Fields: key, value [B, Kv, R + N, d]; length, N tokens included; ring: the cache without them.
    """

    key: Any
    value: Any
    length: Any
    ring: RingCache

    def append(self, key: Shaped[Array, "B Kv N d"], value: Shaped[Array, "B Kv N d"]) -> "RingCache | Unrolled":
        return self.kept().append(key, value)

    def kept(self) -> RingCache:
        R = self.ring.key.shape[2]
        return self.ring._put(self.key[:, :, R:], self.value[:, :, R:])

    def places(self) -> Int[Array, "M"]:
        N = self.key.shape[2] - self.ring.key.shape[2]
        return jnp.concatenate([self.ring.places(), self.ring.length + jnp.arange(N)])

    def of_places(self, mask: Bool[Array, "#B #K #N #P"]) -> Bool[Array, "#B #K #N #M"]:
        return _at(mask, self.places())


def _at(mask: Bool[Array, "#B #K #N #P"], places: Int[Array, "M"]) -> Bool[Array, "#B #K #N #M"]:
    """The mask at those places; what it says at place -1 does not matter, as nothing sees it."""
    return mask if mask.shape[-1] == 1 else jnp.take(mask, places, axis=-1, mode="clip")


@flax.struct.dataclass
class Int8Cache:
    """Cache of a layer whose keys and values are rounded to int8, each token's in each head with a scale of its own.

    Fields: values, of whole numbers from -127 to 127, and scales, of one channel: two caches of the same kind.
    """

    values: Any
    scales: Any

    @property
    def key(self) -> Float[Array, "B Kv M d"]:
        return self.values.key.astype(jnp.float32) * self.scales.key

    @property
    def value(self) -> Float[Array, "B Kv M d"]:
        return self.values.value.astype(jnp.float32) * self.scales.value

    @property
    def length(self) -> Int[Array, ""]:
        return self.values.length

    def append(self, key: Shaped[Array, "B Kv N d"], value: Shaped[Array, "B Kv N d"]) -> "Int8Cache":
        (key, key_scale), (value, value_scale) = _rounded(key), _rounded(value)
        return Int8Cache(self.values.append(key, value), self.scales.append(key_scale, value_scale))

    def kept(self) -> "Int8Cache":
        return Int8Cache(self.values.kept(), self.scales.kept())

    def places(self) -> Int[Array, "M"]:
        return self.values.places()

    def of_places(self, mask: Bool[Array, "#B #K #N #P"]) -> Bool[Array, "#B #K #N #M"]:
        return self.values.of_places(mask)


def _rounded(x: Float[Array, "B Kv N d"]) -> tuple[Int[Array, "B Kv N d"], Float[Array, "B Kv N 1"]]:
    """The nearest whole numbers from -127 to 127 of x / scale, and the scale."""
    scale = jnp.abs(x).max(axis=-1, keepdims=True).astype(jnp.float32) / 127
    return jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale


def empty(
    kind: type[KVCache] | type[RingCache],
    depth: int | None,
    batch: int,
    heads: int,
    room: int,
    head_dim: int,
    dtype: DTypeLike = jnp.float32,
) -> KVCache | RingCache | Int8Cache:
    """An empty cache of a kind, as `KVCache.zeros` makes it; of int8 an `Int8Cache` of that kind."""
    values = kind.zeros(depth, batch, heads, room, head_dim, dtype)
    if jnp.dtype(dtype) != jnp.int8:
        return values
    return Int8Cache(values, kind.zeros(depth, batch, heads, room, 1))


def put_in_place(kept: Shaped[Array, "B Kv M d"], new: Shaped[Array, "B Kv N d"], place: Int[Array, ""]) -> Array:
    """Puts new keys or values behind a place of those kept, in a loop of one step on a CPU.

    Its compiler would otherwise update a copy of all that is kept for each of those that read it.
    """

    def put(kept: Array, new: Array, place: Array) -> Array:
        return jax.lax.dynamic_update_slice(kept, new, (0, 0, place, 0))

    def put_once(kept: Array, new: Array, place: Array) -> Array:
        end = jnp.minimum(place + 1, 1)  # 1, which the compiler does not know
        return jax.lax.fori_loop(0, end, lambda _, kept: put(kept, new, place), kept)

    return by_platform(put, kept, new, jnp.asarray(place), one_cpu=put_once)


@flax.struct.dataclass
class ContextCache:
    """Keys and values of cross-attention, computed in the call that brings the context and used in those without.

    Fields: key, value [B, Kv, M, d]; None before the first call.
    """

    key: Any = None
    value: Any = None

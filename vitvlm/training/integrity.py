"""Fingerprints of arrays: 64 bits each, computed on the devices, the same under every sharding and process count.

Two sums over an array's elements, modulo 2^32, so the order of additions cannot matter. Element i, of bits w:

  linear: w (2 i + 1), and  mixed: mix(w + mix(i)), with mix a bijection of 32-bit words.

An odd number has an inverse modulo 2^32 and mix has one everywhere, so a change of any one word, whatever its
bits, changes both sums for certain. Other damage passes both with a chance of about 2^-64.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

from vitvlm.core import paths

Tree = Any

CHUNK = 2**16  # words that are summed at a time on the host, so that they stay in its caches


def fingerprints(tree: Tree) -> dict[str, str]:
    """Sixteen hexadecimal digits for each array of a tree, by its path.

    Works for every dtype of JAX, typed keys included. All processes must call it, and all get the same answer.
    """
    leaves = paths.flatten(tree)
    sums = jax.device_get(_sums(leaves))
    return {path: f"{int(linear):08x}{int(mixed):08x}" for path, (linear, mixed) in sums.items()}


def of_host(array: np.ndarray) -> str:
    """The fingerprint of an array on the host, in NumPy: the same as `fingerprints` gives for it on devices."""
    if np.issubdtype(array.dtype, np.complexfloating):
        array = np.stack([array.real, array.imag], axis=-1)
    flat = np.ascontiguousarray(array).reshape(-1)
    words = flat.view(f"uint{8 * min(flat.dtype.itemsize, 4)}")
    bits = 8 if flat.dtype == np.bool_ else _bits(flat.dtype)
    linear = mixed = 0
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK].astype(np.uint32)
        if bits < 8:  # such numbers have a byte each
            part &= np.uint32(2**bits - 1)
        index = np.arange(start, start + len(part), dtype=np.uint64).astype(np.uint32)
        linear += int(np.sum(part * (2 * index + 1), dtype=np.uint32))
        mixed += int(np.sum(_mix(part + _mix(index)), dtype=np.uint32))
    return f"{linear % 2**32:08x}{mixed % 2**32:08x}"


def differing(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Paths whose fingerprints differ, or which only one side has."""
    return sorted(path for path in {*found, *expected} if found.get(path) != expected.get(path))


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@jax.jit
def _sums(leaves: Mapping[str, Array]) -> dict[str, UInt32[Array, "2"]]:
    return {path: _sum(leaf) for path, leaf in leaves.items()}


def _sum(array: Shaped[Array, "*shape"]) -> UInt32[Array, "2"]:
    words, index = _words(array)
    linear = words * (2 * index + 1)
    mixed = _mix(words + _mix(index))
    total = partial(jnp.sum, dtype=jnp.uint32)
    return jnp.stack([total(linear), total(mixed)])


def _words(array: Shaped[Array, "*shape"]) -> tuple[UInt32[Array, "*words"], UInt32[Array, "*words"]]:
    """An array's bits as 32-bit words, and each word's position in row-major order."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == jnp.bool_:
        words = array.astype(jnp.uint8)
    else:
        words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{min(_bits(array.dtype), 32)}"))
    index = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return words.astype(jnp.uint32), index


def _bits(dtype: Any) -> int:
    return (jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo)(dtype).bits


def _mix(words: UInt32[Array, "*words"]) -> UInt32[Array, "*words"]:
    """A bijection whose output bits each depend on every input bit: xor-shifts and odd multipliers in turn."""
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return words ^ (words >> 16)

"""A state as plain arrays by path, which is what goes to disk, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vitvlm.core import paths

Tree = Any


def as_arrays(tree: Tree) -> dict[str, Any]:
    """The tree's arrays by path, typed keys as their words.

    Arrays without elements stay out: there is nothing to save, and Orbax refuses them.
    """
    return {path: _key_words(leaf) for path, leaf in paths.flatten(tree).items() if leaf.size}


def like(target: Tree, arrays: Mapping[str, Any]) -> Tree:
    """The arrays in the target's structure: the inverse of `as_arrays`."""

    def pick(path: str, leaf: Any) -> Array:
        if not leaf.size:
            return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(arrays[path], impl=_key_impl(leaf))
        return arrays[path]

    return paths.map_with_path(pick, target)


def _key_words(leaf: Any) -> Any:
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        words = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=leaf.sharding)
    return jax.random.key_data(leaf)


def _key_impl(key: Any) -> Any:
    """Returns `jax.random.key_impl` of a key or of a `jax.ShapeDtypeStruct`, which JAX takes only while tracing."""
    impls = []
    jax.eval_shape(lambda traced: impls.append(jax.random.key_impl(traced)), key)
    return impls[0]

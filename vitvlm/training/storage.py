"""Storage of frozen parameters: in which dtype they are, or quantized, by rules over their paths."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vitvlm.core import rules
from vitvlm.core.config import ConfigError, suggest
from vitvlm.core.paths import flatten, map_with_path
from vitvlm.nn import quantized
from vitvlm.nn.quantized import Quantized
from vitvlm.nn.stacking import is_scanned

Tree = Any
FLOATS = ("float32", "bfloat16", "float16")


def store(frozen: Tree, by: str | rules.Rules | None, where: str = "config.frozen_dtype") -> Tree:
    """The frozen parameters as the rules say. Pure: `eval_shape` it for shapes.

    Args:
      by: pairs (regex over the paths of frozen parameters, value): "float32", "bfloat16", "float16", "int8", "nf4", or
        None to leave it as the model makes it; see `core.rules`. A string alone is for all of them.

    Raises RuleError for rules that do not fit the paths, and ConfigError for a value that does not exist, for a
    parameter that cannot be quantized, and for rules where nothing is frozen.
    """
    if by is None:
        return frozen
    if not frozen:
        raise ConfigError(f"{where}: nothing is frozen: leave it out, or freeze something by config.optimizer.freeze")
    values = rules.match(((".*", by),) if isinstance(by, str) else by, flatten(frozen), where)

    def stored(path: str, leaf: Any) -> Any:
        value = values[path]
        if value is None:
            return leaf
        if value in FLOATS:
            return leaf.astype(value)
        if value not in quantized.KINDS:
            raise ConfigError(f"{where}: {value!r} for {path!r}; {suggest(str(value), (*FLOATS, *quantized.KINDS))}")
        layer = leaf.shape[1:] if is_scanned(path) else leaf.shape
        quantized.check(layer, value, f"{where}: {path!r}")
        return quantized.quantize(leaf, value)

    return map_with_path(stored, frozen)


def is_quantized(leaf: Any) -> bool:
    """Tells whether it is a quantized matrix, which is a leaf where parameters are looked up by their path."""
    return isinstance(leaf, Quantized)


def whole(tree: Tree) -> Tree:
    """Makes quantized matrices float32 again, also where they are dictionaries, as a checkpoint has them."""
    if isinstance(tree, Quantized):
        return tree.whole()
    if not isinstance(tree, Mapping):
        return tree
    if tree.keys() == {"values", "scales"} and tree["values"].dtype in (jnp.int8, jnp.uint8):
        return Quantized(**tree).whole()
    return {name: whole(each) for name, each in tree.items()}


def quantized_like(target: Quantized, matrix: Any) -> Quantized:
    """Quantizes a matrix in the way, and for `jax.Array`s with the shardings, of the one that it replaces."""
    return jax.tree.map(
        lambda new, old: jax.device_put(new, old.sharding) if isinstance(old, jax.Array) else new,
        quantized.quantize(jnp.asarray(matrix), target.kind),
        target,
    )

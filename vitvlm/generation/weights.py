"""Weights as generation reads them fastest: matrices by rows, in float32, bfloat16 or int8."""

import dataclasses
import re

import jax
from flax.core.meta import AxisMetadata

from vitvlm.core.paths import map_with_path
from vitvlm.generation.loaded import Loaded
from vitvlm.nn.rows import Rows, rows

KERNEL = re.compile(r"(.*/)?kernel")


def stored(loaded: Loaded, kind: str) -> Loaded:
    """The same model with its matrices stored by rows, for a loop that reads all of them for every token.

    A head that is the table of tokens becomes a matrix of its own; the table itself stays as it is.

    Args:
      kind: "float32", the same values; "bfloat16"; or "int8" in blocks of 64 inputs.

    Raises ConfigError for an unknown kind.
    """
    model, params = loaded.model, dict(loaded.variables["params"])
    if model.tied:
        model = model.clone(tied=False)
        params["head"] = {"kernel": params["embed"]["embedding"].T}
    store = jax.jit(rows, static_argnames="kind")

    def by_rows(path: str, leaf: object) -> object:
        if not KERNEL.fullmatch(path) or isinstance(leaf, Rows):
            return leaf
        return store(leaf.unbox() if isinstance(leaf, AxisMetadata) else leaf, kind)  # quantized, or with an adapter

    params = map_with_path(by_rows, params, is_leaf=lambda leaf: isinstance(leaf, AxisMetadata))
    return dataclasses.replace(loaded, model=model, variables={**loaded.variables, "params": params})

"""Weights as generation reads them fastest: matrices by rows, in float32, bfloat16 or int8."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core.meta import AxisMetadata

from vitvlm.core.paths import map_with_path
from vitvlm.generation.loaded import Loaded
from vitvlm.models.vlm import VLM
from vitvlm.nn.rows import Rows, rows

KERNEL = re.compile(r"(.*/)?kernel")


def stored(loaded: Loaded, kind: str) -> Loaded:
    """The same model with its matrices stored by rows, for a loop that reads all of them for every token.

    A head that is the table of tokens becomes a matrix of its own; the table itself stays as it is. Of a model that
    sees images it is the language model inside of it; its other parts, which read a prompt once, stay as they are.

    Args:
      kind: "float32", the same values; "bfloat16"; or "int8" in blocks of 64 inputs.

    Raises ConfigError for an unknown kind.
    """
    model, params = loaded.model, loaded.variables["params"]
    if isinstance(model, VLM):
        text, of_text = _by_rows(model.text, params["text"], kind)
        model, params = model.clone(text=text), {**params, "text": of_text}
    else:
        model, params = _by_rows(model, params, kind)
    return dataclasses.replace(loaded, model=model, variables={**loaded.variables, "params": params})


def _by_rows(model: nn.Module, params: Mapping[str, Any], kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """A language model and its parameters, stored by rows."""
    params = dict(params)
    if model.tied:
        model = model.clone(tied=False)
        params["head"] = {"kernel": params["embed"]["embedding"].T}
    store = jax.jit(rows, static_argnames="kind")

    def by_rows(path: str, leaf: object) -> object:
        if not KERNEL.fullmatch(path) or isinstance(leaf, Rows):
            return leaf
        return store(leaf.unbox() if isinstance(leaf, AxisMetadata) else leaf, kind)  # quantized, or with an adapter

    return model, map_with_path(by_rows, params, is_leaf=lambda leaf: isinstance(leaf, AxisMetadata))

"""Heads over devices: the attentions that a program has, and whether a layout cuts one of their heads."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from vitvlm.core.config import ConfigError
from vitvlm.core.paths import Tree, flatten
from vitvlm.nn.attention import Attention
from vitvlm.training.sharding import BATCH_AXES

PROJECTION = re.compile(r"(.*/(?:query|key|value))/(?:kernel|bias)(?:/.*)?")  # quantized kernels are of several arrays
WHOLE = r'[".*(attention|cross)/(key|value)/.*", "replicate"]'


def heads_of(function: Callable[..., Any], *args: Any) -> dict[str, int]:
    """Number of heads by the path of each attention's query, key and value that a function applies; nothing is run.

    Args:
      function: of Flax modules, such as a model's `init`; traced with `args`.
    """
    found: dict[str, int] = {}

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, Attention) and context.method_name == "__call__":
            path = "/".join(module.path)
            counts = {"query": module.heads, **dict.fromkeys(("key", "value"), module.kv_heads or module.heads)}
            found.update({f"{path}/{name}".lstrip("/"): count for name, count in counts.items()})
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(function, *args)
    return found


def check_heads(heads: Mapping[str, int], shardings: Tree, where: str = "config.sharding") -> None:
    """Raises ConfigError for a layout that would cut a head in parts, and says how to keep keys and values whole.

    Axes of the batch, along which parameters are gathered before use, may cut what they want.

    Args:
      heads: see `heads_of`; shardings: of the same model's parameters.
    """
    for path, place in flatten(shardings).items():
        found = PROJECTION.fullmatch(path)
        if found is None or (name := found[1]) not in heads or not place.spec:
            continue
        columns = place.spec[-1]
        axes = () if columns is None else (columns,) if isinstance(columns, str) else columns
        axes = [axis for axis in axes if axis not in BATCH_AXES]
        parts = math.prod(place.mesh.shape[axis] for axis in axes)
        if heads[name] % parts:
            keys = name.endswith(("key", "value"))
            what = f"{heads[name]} heads of {'keys and values' if keys else 'queries'}"
            remedy = f" or begin the rules with {WHOLE}, which keeps these whole on each device" if keys else ""
            raise ConfigError(
                f"{where}: {path!r}: {what} cannot be split over {' x '.join(axes)} = {parts}: change the mesh{remedy}"
            )

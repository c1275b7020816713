"""Gates by which branches begin closed (`nn.blocks.Block.gated`), read from a model's parameters."""

import re
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from vitvlm.core import paths
from vitvlm.nn.stacking import is_scanned, layer_paths, periods

GATE = re.compile(r"(?P<stack>.*/)?blocks_(?P<layer>\d+)/(?:look/)?(?P<branch>\w+)_gate")


def gates(params: Any) -> dict[str, dict[int, Float[Array, ""]]]:
    """The factor tanh(gate) of each gated branch, "cross" or "mlp", by the layer that it stands in or before.

    Of a gate for each channel it is the mean of the factors' absolute values. Empty for a model without gates. Works on
    arrays, and while a function is traced.
    """
    flat = {path: leaf for path, leaf in paths.flatten(params).items() if path.endswith("_gate")}
    of_stacks = periods(paths.flatten(params)) if flat else {}
    found: dict[str, dict[int, Float[Array, ""]]] = {}
    for path, leaf in flat.items():
        scanned = is_scanned(path)
        layers = layer_paths(path, len(leaf), of_stacks) if scanned else [path]
        for i, layer in enumerate(layers):
            gate = GATE.fullmatch(layer)
            factor = jnp.tanh(jnp.asarray(leaf[i] if scanned else leaf, jnp.float32))
            if gate is not None:
                value = factor if factor.ndim == 0 else jnp.abs(factor).mean()
                found.setdefault(gate["branch"], {})[int(gate["layer"])] = value
    return {branch: dict(sorted(of_layers.items())) for branch, of_layers in sorted(found.items())}


def mean_gates(params: Any) -> dict[str, Float[Array, ""]]:
    """Metrics "gate_cross" and "gate_mlp": how far each branch is open, the mean of |tanh(gate)| over the layers."""
    return {
        f"gate_{branch}": jnp.mean(jnp.abs(jnp.stack(list(of_layers.values()))))
        for branch, of_layers in gates(params).items()
    }

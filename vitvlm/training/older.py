"""Checkpoints from before frozen parameters were kept apart: what their arrays are called today.

They hold frozen parameters among those that train, an average of these, and moments below an `optax.partition`:

    params/x, frozen                                   today frozen/x
    ema/x, frozen                                      today left out: the average of what never moved
    opt_state/inner_states/trainable/inner_state/...   today opt_state/...
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

PARTITION = "opt_state/inner_states/trainable/inner_state/"


def is_older(wanted: Collection[str], found: Collection[str]) -> bool:
    """Tells whether a checkpoint with the paths `found` holds a state with the paths `wanted` in the way of before."""
    frozen = _frozen(wanted)
    return bool(frozen) and not _frozen(found) and all(_before(path) in found for path in frozen)


def target(wanted: Mapping[str, jax.ShapeDtypeStruct], found: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Lists what to restore of such a checkpoint, by the paths of before.

    Args:
      wanted: the state's arrays by their paths of today.
      found: shape, dtype and fingerprint of the checkpoint's arrays.
    """
    before = {_before(path): leaf for path, leaf in wanted.items()}
    averages = {f"ema/{path.removeprefix('frozen/')}": wanted[path] for path in _frozen(wanted)}
    return before | {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(found[path][1]), sharding=leaf.sharding)
        for path, leaf in averages.items()
        if path in found
    }


def renamed(arrays: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """The arrays of such a checkpoint by their paths of today."""
    return {path: arrays[_before(path)] for path in wanted}


def _frozen(paths: Collection[str]) -> list[str]:
    return [path for path in paths if path.startswith("frozen/")]


def _before(path: str) -> str:
    if path.startswith("frozen/"):
        return f"params/{path.removeprefix('frozen/')}"
    if path.startswith("opt_state/"):
        return PARTITION + path.removeprefix("opt_state/")
    return path

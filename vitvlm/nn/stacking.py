"""Paths and parameters of scanned blocks, and the same looped: one converted to the other.

scanned, all alike         blocks/x             [depth, ...]
scanned, a pattern of P    blocks/every_p/x     [depth // P, ...]: layers p, p + P, p + 2P, ...
looped                     blocks_0/x, blocks_1/x, ...; and the depth % P layers behind the periods of a pattern
"""

import re
import types
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitvlm.core import paths, placing

SCANNED = re.compile(r"(?P<stack>(?:.*/)?)blocks/(?:every_(?P<place>\d+)/)?(?P<rest>.*)")  # paths of scanned blocks
LOOPED = re.compile(r"(?P<stack>(?:.*/)?)blocks_(?P<layer>\d+)/(?P<rest>.*)")
STAGE = re.compile(r"(?:.*/)?stages_\d+/")

Periods = Mapping[str, int]  # P of each stack of blocks that is a pattern, by its prefix: "" or "decoder/"
ALIKE: Periods = types.MappingProxyType({})


def is_scanned(path: str) -> bool:
    """Tells whether the parameter's first axis goes over the layers of a scanned stack of blocks."""
    return SCANNED.fullmatch(path) is not None


def periods(paths: Iterable[str]) -> dict[str, int]:
    """The period P of each scanned stack whose layers are a pattern, by the paths of all its parameters."""
    found: dict[str, int] = {}
    for path in paths:
        scanned = SCANNED.fullmatch(path)
        if scanned and scanned["place"]:
            found[scanned["stack"]] = max(found.get(scanned["stack"], 1), int(scanned["place"]) + 1)
    return found


def layers_of(path: str, count: int, periods: Periods = ALIKE) -> list[int]:
    """The layers that a scanned parameter with `count` entries along its first axis is of."""
    scanned = SCANNED.fullmatch(path)
    P = periods.get(scanned["stack"], 1)
    return [int(scanned["place"] or 0) + P * i for i in range(count)]


def layer_paths(path: str, count: int, periods: Periods = ALIKE) -> list[str]:
    """Paths of the layers of a scanned parameter, as a loop has them: "blocks_0/...", "blocks_1/..."."""
    scanned = SCANNED.fullmatch(path)
    return [f"{scanned['stack']}blocks_{layer}/{scanned['rest']}" for layer in layers_of(path, count, periods)]


def scanned_path(path: str, periods: Periods = ALIKE) -> str:
    """The path of a looped block's parameter under scan; any other as it is."""
    looped = _numbered(path)
    if looped is None:
        return path
    P = periods.get(looped["stack"], 1)
    place = "" if P == 1 else f"every_{int(looped['layer']) % P}/"
    return f"{looped['stack']}blocks/{place}{looped['rest']}"


def unstack_blocks(params: Any) -> dict[str, Any]:
    """Parameters of scanned blocks as a loop's: ".../blocks/x" of [depth, ...] becomes ".../blocks_0/x", ...

    Every "blocks" in the tree is converted (an encoder's and a decoder's); without one, the tree stays as it is.
    """
    flat = paths.flatten(params)
    of_stacks = periods(flat)
    leaves: dict[str, Any] = {}
    for path, leaf in flat.items():
        if is_scanned(path):
            leaves |= zip(layer_paths(path, len(leaf), of_stacks), leaf)
        else:
            leaves[path] = leaf
    return paths.unflatten(leaves)


def stack_blocks(params: Any, periods: Periods = ALIKE) -> dict[str, Any]:
    """Parameters of looped blocks as scanned ones: the inverse of `unstack_blocks`.

    Blocks of a stage ("stages_0/blocks_0/..."), which need not be alike, stay apart: no model scans them.

    Args:
      periods: of the stacks that are a pattern; a looped tree does not say which these are.

    Raises ValueError if a block is missing: its path has no array for each layer from the first to the last.
    """
    flat = paths.flatten(params)
    looped = {path: found for path in flat if (found := _numbered(path)) is not None}
    depths: dict[str, int] = {}
    for found in looped.values():
        depths[found["stack"]] = max(depths.get(found["stack"], 0), int(found["layer"]) + 1)
    count = {stack: depth // periods.get(stack, 1) for stack, depth in depths.items()}  # of whole periods
    leaves: dict[str, Any] = {}
    stacks: dict[str, dict[int, Any]] = {}
    for path, leaf in flat.items():
        if path in looped and int(looped[path]["layer"]) < count[stack := looped[path]["stack"]] * periods.get(
            stack, 1
        ):
            stacks.setdefault(scanned_path(path, periods), {})[int(looped[path]["layer"])] = leaf
        else:
            leaves[path] = leaf
    for path, arrays in stacks.items():
        wanted = layers_of(path, count[SCANNED.fullmatch(path)["stack"]], periods)
        if missing := [layer for layer in wanted if layer not in arrays]:
            raise ValueError(f"{path}: no array for layer {missing[0]}")
        leaves[path] = _stack([arrays[layer] for layer in wanted])
    return paths.unflatten(leaves)


def _numbered(path: str) -> re.Match[str] | None:
    """The parts of a looped block's path; None for a path outside a stack of blocks that can be scanned."""
    looped = LOOPED.fullmatch(path)
    return None if looped is None or STAGE.fullmatch(looped["stack"]) else looped


def _stack(arrays: list[Any]) -> Any:
    """Arrays of the layers as one; NumPy arrays stay on the host, lazy arrays lazy."""
    if isinstance(arrays[0], placing.Lazy):
        return placing.stacked(arrays)
    return np.stack(arrays) if isinstance(arrays[0], np.ndarray) else jnp.stack(arrays)

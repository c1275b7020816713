"""Layers of parameters by their paths: blocks/... (scanned: leading depth axis) or blocks_{i}/... (looped).

Scanned and looped layers must train alike. Whatever depends on a tensor's norm, its rank (trust ratios, factored
moments, orthogonalisation) or its depth must therefore be computed for each layer of a scanned stack on its own.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import optax
from jaxtyping import Float

from vitvlm.core.config import ConfigError
from vitvlm.core.paths import map_with_path
from vitvlm.nn.roles import Role
from vitvlm.nn.stacking import LOOPED, SCANNED, Periods, is_scanned, layers_of, periods

_STAGE = re.compile(r"(?P<root>(?:.*/)?)stages_(?P<number>\d+)/")


def per_layer(
    inner: optax.GradientTransformation, shapes: Mapping[str, tuple[int, ...]]
) -> optax.GradientTransformation:
    """Transforms every layer of scanned blocks as if it were a tree of its own.

    Stacks of one depth are mapped over that axis together; their state gets the same leading axis.

    Args:
      shapes: the shape of every parameter that will be updated, by path.
    """

    def label(path: str, shape: tuple[int, ...]) -> str:
        return f"depth_{shape[0]}" if is_scanned(path) else "single"

    mapped = optax.GradientTransformation(jax.vmap(inner.init), jax.vmap(inner.update))
    kinds = {label(path, shape) for path, shape in shapes.items()}
    return optax.partition(
        {kind: inner if kind == "single" else mapped for kind in sorted(kinds)},
        lambda tree: map_with_path(lambda path, leaf: label(path, leaf.shape), tree),
    )


def depth_factors(
    decay: float, shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, Role], where: str
) -> dict[str, float | Float[np.ndarray, "depth"]]:
    """Layer-wise learning-rate decay (BEiT, MAE's fine-tuning): decay^(depth + 1 - l) for layer l.

    The embeddings are layer 0, block i is layer i + 1, and what is on top of the blocks is layer depth + 1, with factor
    1; a parameter's role says which it is. Blocks in stages are counted through all stages, and what a stage does
    before its blocks (Swin's merging) belongs to the last block before it, as in SimMIM. Each of two towers counts its
    own layers; embeddings outside of both are layer 0 of the deeper one. Scanned blocks get a vector over their depth.

    Args:
      shapes: the shape of every parameter, by path; roles: its role.
      where: the config field, for error messages.

    Raises ConfigError if no parameter is part of a block.
    """
    of_stacks = periods(shapes)
    towers = _towers([path for path in shapes if roles[path].part == "block"], shapes, of_stacks)
    if not towers:
        raise ConfigError(f"{where}: this model has no blocks to count; use lr_rules instead")
    return {path: _factor(decay, path, shape, roles[path], towers, of_stacks) for path, shape in shapes.items()}


def _factor(
    decay: float,
    path: str,
    shape: tuple[int, ...],
    role: Role,
    towers: Mapping[str, Mapping[str, int]],
    of_stacks: Periods,
) -> float | Float[np.ndarray, "depth"]:
    if role.part not in ("embedding", "block"):
        return 1.0
    own = max((root for root in towers if path.startswith(root)), key=len, default=None)
    depths = max(towers.values(), key=lambda each: sum(each.values())) if own is None else towers[own]
    total = sum(depths.values())
    if role.part == "embedding":
        return decay ** (total + 1)
    before = 0  # blocks of the stages before the parameter's own
    for stack, depth in depths.items():
        if path.startswith(stack):
            break
        before += depth
    if is_scanned(path):
        return decay ** (total - before - np.array(layers_of(path, shape[0], of_stacks), np.float32))
    looped = LOOPED.fullmatch(path)
    layer = before + int(looped["layer"]) + 1 if looped else before
    return decay ** (total + 1 - layer)


def _towers(
    paths: Sequence[str], shapes: Mapping[str, tuple[int, ...]], of_stacks: Periods
) -> dict[str, dict[str, int]]:
    """Returns, for each encoder by its prefix, the depth of its stack of blocks or of each of its stages, in order."""
    depths: dict[str, int] = {}
    for path in paths:
        if scanned := SCANNED.fullmatch(path):
            depth = shapes[path][0] * of_stacks.get(scanned["stack"], 1)
            depths[scanned["stack"]] = max(depths.get(scanned["stack"], 0), depth)
        elif looped := LOOPED.fullmatch(path):
            depths[looped["stack"]] = max(depths.get(looped["stack"], 0), int(looped["layer"]) + 1)
    numbered = []
    for stack, depth in depths.items():
        stage = _STAGE.fullmatch(stack)
        numbered.append((stage["root"] if stage else stack, int(stage["number"]) if stage else 0, stack, depth))
    towers: dict[str, dict[str, int]] = {}
    for root, _, stack, depth in sorted(numbered):
        towers.setdefault(root, {})[stack] = depth
    return towers

"""Which layer a parameter belongs to, by its path: blocks/... (scanned: leading depth axis) or blocks_{i}/... (looped).

Layers that are scanned and layers that are looped over must train alike. What follows from a tensor's norm or
from its rank (trust ratios, factored moments, orthogonalisation) or from its depth must therefore be computed for each
layer of a scanned stack on its own.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np
import optax
from jaxtyping import Float

from vitvlm.core.config import ConfigError
from vitvlm.core.paths import map_with_path
from vitvlm.nn.stack import SCANNED, is_scanned

_STAGE = re.compile(r"(?P<root>(?:.*/)?)stages_(?P<number>\d+)/")
_LOOPED = re.compile(r"(?P<stack>(?:.*/)?)blocks_(?P<layer>\d+)/.*")


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
    decay: float, shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, float | Float[np.ndarray, "depth"]]:
    """Layer-wise learning-rate decay (BEiT, MAE's fine-tuning): decay^(depth + 1 - l) for layer l.

    The embeddings (patches, cls, positions, registers, stem, a norm before the blocks …) are layer 0, block i is layer
    i + 1, and all the rest (final norm, pooling, head) is layer depth + 1, with factor 1. Blocks in stages are counted
    through all stages, and what a stage does before its blocks (Swin's merging) belongs to the first of them. Scanned
    blocks get a vector over their depth.

    Args:
      shapes: the shape of every parameter, by path.
      where: the config field, for error messages.

    Raises ConfigError unless the parameters hold exactly one stack of blocks, or of stages.
    """
    root, depths = _only_stack(shapes, where)
    total = sum(depths.values())
    names = "patches|patches_norm|embed|cls|distillation|registers|positions|pre_norm|stem"
    embeddings = re.compile(rf"{re.escape(root)}({names})(/.*)?")

    def factor(path: str) -> float | Float[np.ndarray, "depth"]:
        before = 0  # blocks of the stages before the parameter's own
        for stack, depth in depths.items():
            if stack == root or path.startswith(stack):
                if is_scanned(path):
                    return decay ** (total - before - np.arange(depth, dtype=np.float32))
                if looped := _LOOPED.fullmatch(path):
                    return decay ** (total - before - int(looped["layer"]))
                if stack != root:
                    return decay ** (total - before)
            before += depth
        return decay ** (total + 1) if embeddings.fullmatch(path) else 1.0

    return {path: factor(path) for path in shapes}


def _only_stack(shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[str, dict[str, int]]:
    """Prefix of the one stack of blocks, or of its stages, and the depth of each stage by its own prefix, in order."""
    depths: dict[str, int] = {}
    for path, shape in shapes.items():
        if scanned := SCANNED.fullmatch(path):
            depths[scanned["stack"]] = shape[0]
        elif looped := _LOOPED.fullmatch(path):
            depths[looped["stack"]] = max(depths.get(looped["stack"], 0), int(looped["layer"]) + 1)
    if len(depths) == 1 and not _STAGE.fullmatch(next(iter(depths))):
        return next(iter(depths)), depths
    stages = {stack: stage for stack in depths if (stage := _STAGE.fullmatch(stack))}
    roots = {stage["root"] for stage in stages.values()}
    if len(stages) != len(depths) or len(roots) != 1:
        found = ", ".join(f"{stack}blocks" for stack in sorted(depths)) or "none"
        raise ConfigError(f"{where}: needs exactly one stack of blocks or stages, found {found}; use lr_rules instead")
    return roots.pop(), {stack: depths[stack] for stack in sorted(stages, key=lambda name: int(stages[name]["number"]))}

"""Images that keep their shape as rows of patches (SigLIP 2's NaFlex: Tschannen et al. 2025, section 2.4)."""

import math
from typing import Any

import numpy as np

from vitvlm.data.operations.geometry import Shape
from vitvlm.data.operations.parsing import example_operation, geometric_operation
from vitvlm.data.operations.steps import Resize, Steps

PRECISION = 1e-5  # of the scale that is searched for
LARGEST_SCALE = 100.0


@geometric_operation("fit_patches")
def fit_patches(shape: Shape, patch_size: int, max_patches: int, method: str = "bilinear") -> Steps:
    """Resizes to as many whole patches as `max_patches` allows; the shape changes by less than a patch."""
    return [Resize(shape[:2], fitting_size(*shape[:2], patch_size, max_patches), method)]


@example_operation(
    "patchify",
    reads=lambda given: {given["field"]: "image"},
    writes=lambda given: (given["field"], *_beside(given["field"])),
)
def patchify(example: dict[str, Any], patch_size: int, max_patches: int, field: str = "image") -> dict[str, Any]:
    """Cuts the image into patches, row by row: [max_patches, patch_size^2, C], the rest zeros; comes last.

    `patch_mask` is 1 at patches of the image, and `patch_grid` its rows and columns of patches; of another field than
    "image" they are called `FIELD_patch_mask` and `FIELD_patch_grid`.
    """
    image = example[field]
    H, W, C = image.shape
    P = patch_size
    if H % P or W % P or max_patches < (H // P) * (W // P):
        raise ValueError(
            f"an image of {H}x{W} is not at most {max_patches} whole patches of {P}x{P}: put fit_patches first"
        )
    h, w = H // P, W // P
    patches = np.zeros((max_patches, P * P, C), image.dtype)
    patches[: h * w] = image.reshape(h, P, w, P, C).transpose(0, 2, 1, 3, 4).reshape(h * w, P * P, C)
    mask = (np.arange(max_patches) < h * w).astype(np.int32)
    of_mask, of_grid = _beside(field)
    return {**example, field: patches, of_mask: mask, of_grid: np.array((h, w), np.int32)}


def _beside(field: str) -> tuple[str, str]:
    """The names of the mask and the grid of a field's patches."""
    prefix = "" if field == "image" else f"{field}_"
    return f"{prefix}patch_mask", f"{prefix}patch_grid"


def fitting_size(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """The size, in whole patches, of an image scaled as much as it can be: each side is rounded up.

    The scale is found by halving an interval until it is PRECISION wide, as the reference does: so both agree where an
    image is on the border of another patch.
    """

    def scaled(scale: float, side: int) -> int:
        return max(patch_size, math.ceil(side * scale / patch_size) * patch_size)

    low, high = PRECISION / 10, LARGEST_SCALE
    while high - low >= PRECISION:
        scale = (low + high) / 2
        count = scaled(scale, height) // patch_size * (scaled(scale, width) // patch_size)
        low, high = (scale, high) if count <= max_patches else (low, scale)
    return scaled(low, height), scaled(low, width)

"""Images that keep their shape as rows of patches (SigLIP 2's NaFlex: Tschannen et al. 2025, section 2.4)."""

import math
from typing import Any

import numpy as np
from jaxtyping import Shaped

from vitvlm.data.operations.geometry import resize
from vitvlm.data.operations.parsing import example_operation, image_operation
from vitvlm.data.operations.pixels import NewPixels

PRECISION = 1e-5  # of the scale that is searched for
LARGEST_SCALE = 100.0


@image_operation("fit_patches")
def fit_patches(
    image: Shaped[np.ndarray, "H W C"], patch_size: int, max_patches: int, method: str = "bilinear"
) -> NewPixels:
    """Resizes to as many whole patches as `max_patches` allows; the shape changes by less than a patch."""
    return resize(image, fitting_size(*image.shape[:2], patch_size, max_patches), method)


@example_operation("patchify", arrays=("patch_mask", "patch_grid"))
def patchify(example: dict[str, Any], patch_size: int, max_patches: int) -> dict[str, Any]:
    """Cuts the image into patches, row by row: [max_patches, patch_size^2, C], the rest zeros; comes last.

    `patch_mask` is 1 at patches of the image, and `patch_grid` its rows and columns of patches.
    """
    image = example["image"]
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
    return {**example, "image": patches, "patch_mask": mask, "patch_grid": np.array((h, w), np.int32)}


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

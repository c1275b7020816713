"""Images that keep their shape as rows of patches: of SigLIP 2's NaFlex (Tschannen et al. 2025, section 2.4), and of
Qwen2-VL (Wang et al. 2024, section 2.1)."""

import math
from typing import Any

import numpy as np

from vitvlm.core.limits import Count, Length, Rows, Side
from vitvlm.core.mrope import multimodal_positions
from vitvlm.data.kinds import OF_EACH_IMAGE
from vitvlm.data.operations import tracing
from vitvlm.data.operations.geometry import Shape
from vitvlm.data.operations.parsing import example_operation, geometric_operation
from vitvlm.data.operations.steps import Resize, Steps

PRECISION = 1e-5  # of the scale that is searched for
LARGEST_SCALE = 100.0


@geometric_operation("fit_patches")
def fit_patches(shape: Shape, patch_size: Side, max_patches: Length, method: str = "bilinear") -> Steps:
    """Resizes to as many whole patches as `max_patches` allows; the shape changes by less than a patch."""
    return [Resize(shape[:2], fitting_size(*shape[:2], patch_size, max_patches), method)]


@example_operation(
    "patchify",
    reads=lambda given: {given["field"]: "image"},
    writes=lambda given: (given["field"], *_beside(given["field"])),
)
def patchify(example: dict[str, Any], patch_size: Side, max_patches: Length, field: str = "image") -> dict[str, Any]:
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


@geometric_operation("smart_resize")
def smart_resize(
    shape: Shape, factor: Side = 28, min_pixels: Count = 3136, max_pixels: Count = 1_003_520, method: str = "bicubic"
) -> Steps:
    """Resizes both sides to multiples of `factor`, so that there are min_pixels to max_pixels, as Qwen2-VL does.

    The aspect ratio is kept as far as that allows. Raises ValueError for a side 200 times the other.
    """
    return [Resize(shape[:2], smart_size(*shape[:2], factor, min_pixels, max_pixels), method)]


@example_operation(
    "merge_patches",
    reads=lambda given: {given["field"]: given["field"]},
    writes=lambda given: ("images", *OF_EACH_IMAGE),
    makes=lambda given: ("image_texts", "image_rows"),
)
def merge_patches(
    example: dict[str, Any],
    patch_size: Side,
    max_patches: Length,
    merge: Side = 2,
    frames: Rows = 1,
    image_token: str = "<|image_pad|>",
    field: str = "images",
) -> dict[str, Any]:
    """Cuts images of any shapes into patches, as Qwen2-VL reads them: those that become one token follow each other.

    `images` becomes arrays [max_patches, patch_size^2, frames * C], the rest zeros; `images_patch_mask` is 1 at patches
    of each, `images_patch_grid` its rows and columns of patches, `image_times` its number in a video. With
    field="video", whose last frame is repeated until `frames` divide them, each `frames` of them are one such image,
    and the video has one marker; else an image is `frames` times the same. `image_texts` and `image_rows` are those of
    `operations.tiling`. Put smart_resize and normalize before it.
    """
    if merge < 1 or max_patches % merge**2:
        raise ValueError(f"max_patches={max_patches} must be a multiple of merge x merge, {merge**2}")
    value = example[field]
    images = list(value) if tracing.several(value) else [value]
    slices = _slices(images, frames) if field == "video" else [np.tile(image, frames) for image in images]
    rows_of_each, start, rows = max_patches // merge**2, 0, []
    new: dict[str, Any] = {"images": [], **{name: [] for name in OF_EACH_IMAGE}}
    for number, image in enumerate(slices):
        patches, grid = _merge_by_merge(image, patch_size, max_patches, merge)
        count = grid[0] * grid[1]
        new["images"].append(patches)
        new["images_patch_mask"].append((np.arange(max_patches) < count).astype(np.int32))
        new["images_patch_grid"].append(np.array(grid, np.int32))
        new["image_times"].append(np.int32(number if field == "video" else 0))
        rows.append(np.arange(start, start + count // merge**2, dtype=np.int32))
        start += rows_of_each
    for name, shape in zip(OF_EACH_IMAGE, ((-1, max_patches), (-1, 2), (-1,)), strict=True):
        new[name] = np.array(new[name], np.int32).reshape(shape)  # of a record without images too
    if field == "video":
        rows = [np.concatenate(rows)]
    new |= {"image_rows": tuple(rows), "image_texts": tuple(image_token * len(each) for each in rows)}
    return {name: each for name, each in example.items() if name != field} | new


@example_operation("mrope", writes=lambda given: ("text_positions",))
def mrope(example: dict[str, Any], merge: int = 2) -> dict[str, Any]:
    """Adds text_positions int32 [L, 3], Qwen2-VL's M-RoPE; after supervise, and before pack, which cannot do it.

    Not needed without pack: the model finds them itself. See `core.mrope`.
    """
    grids, times = (np.asarray(example[name]) for name in ("images_patch_grid", "image_times"))
    if not len(times):  # a record without images
        grids, times = np.zeros((1, 2), np.int32), np.zeros(1, np.int32)
    found = multimodal_positions(
        np.asarray(example["text_mask"])[None],
        np.asarray(example["image_index"])[None],
        grids[None] // merge,
        times[None],
        np.shape(example["images_patch_mask"])[1] // merge**2,
    )
    return {**example, "text_positions": found[0]}


def smart_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size (height, width) that `smart_resize` gives an image."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"an image of {height}x{width}: one side is more than 200 times the other")
    size = tuple(round(side / factor) * factor for side in (height, width))
    if size[0] * size[1] > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        return tuple(max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    if size[0] * size[1] < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        return tuple(math.ceil(side * scale / factor) * factor for side in (height, width))
    return size


def _slices(frames: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Frames [H, W, C] of a video as images [H, W, count * C], the last one repeated to fill up."""
    if not frames:
        raise ValueError("a video without a frame")
    frames = [*frames, *[frames[-1]] * (-len(frames) % count)]
    return [np.concatenate(frames[i : i + count], axis=-1) for i in range(0, len(frames), count)]


def _merge_by_merge(image: np.ndarray, P: int, max_patches: int, m: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Patches [max_patches, P^2, C] in groups of m x m, row by row, and the grid."""
    H, W, C = image.shape
    h, w = H // (P * m), W // (P * m)
    if H % (P * m) or W % (P * m) or h * w * m * m > max_patches:
        raise ValueError(
            f"an image of {H}x{W} is not at most {max_patches} patches of {P}x{P} in groups of {m}x{m}: put "
            f"smart_resize({P * m}, max_pixels={max_patches * P * P}) first"
        )
    cut = image.reshape(h, m, P, w, m, P, C).transpose(0, 3, 1, 4, 2, 5, 6).reshape(-1, P * P, C)
    return np.pad(cut, [(0, max_patches - len(cut)), (0, 0), (0, 0)]), (h * m, w * m)

"""Affine transforms of pixels, and maps over patches put back on the image that they were made of.

Coordinates are (x, y) in pixels: the pixel of row i and column j covers [j, j + 1) x [i, i + 1). A transform is a
matrix float64 [3, 3] that takes homogeneous coordinates (x, y, 1) of an operation's output to those of its input; the
product `first @ second` is the transform of two operations in that order.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

Transform = Float[np.ndarray, "3 3"]

IDENTITY: Transform = np.eye(3)
IDENTITY.setflags(write=False)


def scaling(x: float, y: float) -> Transform:
    """Transform of a resize that takes `x` input pixels for one output pixel across, and `y` down."""
    return np.diag((x, y, 1.0))


def translation(x: float, y: float) -> Transform:
    """Transform of a crop whose first column and row are `x` and `y`; negative where a border is added."""
    return np.array([[1.0, 0, x], [0, 1.0, y], [0, 0, 1.0]])


def mirroring(width: float) -> Transform:
    """Transform of a mirror image, left to right, of this width."""
    return np.array([[-1.0, 0, width], [0, 1.0, 0], [0, 0, 1.0]])


def upright(orientation: int, height: int, width: int) -> Transform:
    """Transform of turning a stored image of height x width upright, as EXIF's orientation 1 to 8 says."""
    rows = {
        2: ((-1, 0, width), (0, 1, 0)),
        3: ((-1, 0, width), (0, -1, height)),
        4: ((1, 0, 0), (0, -1, height)),
        5: ((0, 1, 0), (1, 0, 0)),
        6: ((0, 1, 0), (-1, 0, height)),
        7: ((0, -1, width), (-1, 0, height)),
        8: ((0, -1, width), (1, 0, 0)),
    }
    return np.array([*rows[orientation], (0, 0, 1)], np.float64) if orientation in rows else IDENTITY


def moved(points: Float[np.ndarray, "*n 2"], transform: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "*n 2"]:
    """Points (x, y) taken by a transform, float64."""
    return np.asarray(points, np.float64) @ transform[:2, :2].T + transform[:2, 2]


def put_back(
    values: Float[np.ndarray, "h w"],
    transform: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    original_size: tuple[int, int],
    method: Literal["bilinear", "nearest"] = "bilinear",
    fill: float = np.nan,
) -> Float[np.ndarray, "H0 W0"]:
    """A map over the patches of a model's input, on the pixels of the image that the input was made from.

    Args:
      values: one number for each of h x w patches, which tile the input.
      transform: from the input's pixels to the image's, as the batch field `transform` has it.
      size: (H, W) of the input in pixels; of NaFlex's patches `patch_grid` times the patch size.
      original_size: (H0, W0) of the image, as the batch field `original_size` has it.
      method: "nearest" gives each pixel its patch's number, "bilinear" mixes those of the nearest four centres.
      fill: for pixels that the input does not show, such as those that a crop cut away.

    Returns float64 [H0, W0]. Raises ValueError for a transform that cannot be inverted and an unknown method.
    """
    if method not in ("bilinear", "nearest"):
        raise ValueError(f"method={method!r} must be 'bilinear' or 'nearest'")
    if abs(np.linalg.det(transform)) < 1e-12:
        raise ValueError("the transform cannot be inverted: is it that of a padding row of the batch?")
    (H, W), (H0, W0), (h, w) = size, original_size, np.shape(values)
    y, x = np.mgrid[:H0, :W0] + 0.5
    seen = moved(np.stack([x, y], axis=-1), np.linalg.inv(np.asarray(transform, np.float64)))
    inside = ((seen >= 0) & (seen < (W, H))).all(axis=-1)
    across, down = seen[..., 0] * (w / W), seen[..., 1] * (h / H)
    if method == "nearest":
        shown = values[_within(np.floor(down), h), _within(np.floor(across), w)].astype(np.float64)
    else:
        shown = _mixed(np.asarray(values, np.float64), down - 0.5, across - 0.5)
    return np.where(inside, shown, fill)


def _mixed(
    values: Float[np.ndarray, "h w"], down: Float[np.ndarray, "H W"], across: Float[np.ndarray, "H W"]
) -> Float[np.ndarray, "H W"]:
    """Bilinear samples at fractional rows and columns; beyond the outermost centres the values go on as they are."""
    h, w = values.shape
    rows, columns = np.floor(down), np.floor(across)
    low, left = np.clip(down, 0, h - 1) - _within(rows, h), np.clip(across, 0, w - 1) - _within(columns, w)
    above, below = _within(rows, h), _within(rows + 1, h)
    before, after = _within(columns, w), _within(columns + 1, w)
    top = values[above, before] * (1 - left) + values[above, after] * left
    bottom = values[below, before] * (1 - left) + values[below, after] * left
    return top * (1 - low) + bottom * low


def _within(places: Float[np.ndarray, "H W"], count: int) -> np.ndarray:
    return np.clip(places, 0, count - 1).astype(int)

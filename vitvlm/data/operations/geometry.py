"""Sizes, crops and mirror images. Sizes are (height, width), or one number for both.

Each plans its steps from the shape of the image alone; `operations.steps` does them, and `operations.moving` moves with
them what belongs to the image. Called directly, as in `resize(image, 224)`, an operation returns the image.
"""

import math
from collections.abc import Callable

import numpy as np

from vitvlm.core.limits import Margin, Side, Sides
from vitvlm.data.operations.parsing import geometric_operation
from vitvlm.data.operations.steps import Mirror, Resize, Steps, Window

Shape = tuple[int, int, int]  # (H, W, C)


@geometric_operation("resize")
def resize(shape: Shape, size: Sides, method: str = "bilinear") -> Steps:
    """Resizes to exactly this size, with antialias; the aspect ratio is not kept.

    The methods are Pillow's, to the bit, and "fast": within about a grey level of "bilinear", in less than half its
    time.
    """
    return [Resize(shape[:2], _pair(size), method)]


@geometric_operation("resize_small")
def resize_small(shape: Shape, size: Side, method: str = "bilinear") -> Steps:
    """Resizes so that the shorter side becomes `size`, with antialias; the aspect ratio is kept.

    The longer side is rounded down, as torchvision and `transformers` do.
    """
    _pair(size)
    short, long = sorted(shape[:2])
    longer = int(size * long / short)
    return [Resize(shape[:2], (size, longer) if shape[0] == short else (longer, size), method)]


@geometric_operation("resize_cover")
def resize_cover(shape: Shape, size: Sides, method: str = "bilinear") -> Steps:
    """Resizes to the smallest image that covers `size`, with antialias; the aspect ratio is kept, to a pixel."""
    return [Resize(shape[:2], _scaled(shape, size, min), method)]


@geometric_operation("resize_contain")
def resize_contain(shape: Shape, size: Sides, method: str = "bilinear") -> Steps:
    """Resizes to the largest image that `size` contains, with antialias; the aspect ratio is kept, to a pixel."""
    return [Resize(shape[:2], _scaled(shape, size, max), method)]


@geometric_operation("resize_pad")
def resize_pad(shape: Shape, size: Sides, fill: int | tuple = 255, method: str = "bilinear") -> Steps:
    """Resizes to the largest image that `size` contains, and puts it in the middle of a `size` of `fill`.

    The aspect ratio is kept and nothing is cut away; an odd margin leaves its extra pixel at the bottom or right.
    """
    contained = _scaled(shape, size, max)
    return [Resize(shape[:2], contained, method), _middle(contained, _pair(size), fill, "even")]


@geometric_operation("central_crop")
def central_crop(shape: Shape, size: Sides, fill: int | tuple | None = None, rounding: str = "down") -> Steps:
    """Cuts out the middle, after adding a border of `fill` (0 to 255, or one per channel) to an image that is smaller.

    Args:
      fill: None is an error for a smaller image.
      rounding: of half an odd margin. "down", as `transformers`: an extra pixel is cut from the bottom or right, and
        added at the top or left. "even", as torchvision: half the margin is rounded to the even number, so that an
        extra pixel is cut from either side, and added at the bottom or right.
    """
    height, width = _pair(size)
    if rounding not in ("down", "even"):
        raise ValueError(f"rounding={rounding!r} must be 'down' or 'even'")
    if fill is None:
        _margins(shape, height, width)
    return [_middle(shape[:2], (height, width), fill or 0, rounding)]


@geometric_operation("random_crop", random=True)
def random_crop(shape: Shape, size: Sides, padding: Margin = 0, fill: int = 0, *, rng: np.random.Generator) -> Steps:
    """Cuts out a window at a random place, after adding `padding` pixels of value `fill` on every side."""
    height, width = _pair(size)
    below, right = _margins((shape[0] + 2 * padding, shape[1] + 2 * padding), height, width)
    top, left = rng.integers(below + 1), rng.integers(right + 1)
    return [Window(int(top) - padding, int(left) - padding, (height, width), fill)]


@geometric_operation("random_resized_crop", random=True)
def random_resized_crop(
    shape: Shape,
    size: Sides,
    scale: tuple = (0.08, 1.0),
    ratio: tuple = (3 / 4, 4 / 3),
    method: str = "bicubic",
    *,
    rng: np.random.Generator,
) -> Steps:
    """A window of random area and shape, resized to `size` (Inception's crop).

    The area is uniform in `scale` (shares of the image), the width / height ratio log-uniform in `ratio`. If ten
    windows in a row do not fit, the largest central one within `ratio` is taken.
    """
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"scale={scale} must lie within (0, 1] and ratio={ratio} be positive, both in rising order")
    height, width = _pair(size)
    top, left, rows, columns = _window(*shape[:2], scale, ratio, rng)
    return [Window(top, left, (rows, columns)), Resize((rows, columns), (height, width), method)]


@geometric_operation("flip", random=True)
def flip(shape: Shape, probability: float = 0.5, *, rng: np.random.Generator) -> Steps:
    """Mirrors the image left to right with this probability."""
    return [] if rng.random() >= probability else [Mirror(shape[:2])]


def _window(H: int, W: int, scale: tuple, ratio: tuple, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws (top, left, height, width) of a crop; every try draws the same count of numbers."""
    for _ in range(10):
        area = H * W * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        height, width = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < height <= H and 0 < width <= W:
            return int(rng.integers(0, H - height + 1)), int(rng.integers(0, W - width + 1)), height, width
    shape = min(max(W / H, ratio[0]), ratio[1])
    height, width = max(1, min(H, round(W / shape))), max(1, min(W, round(H * shape)))
    return (H - height) // 2, (W - width) // 2, height, width


def _pair(size: int | tuple) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"size={size!r} must be a positive number or a pair (height, width) of them")
    return pair


def _scaled(shape: Shape, size: int | tuple, least: Callable[..., float]) -> tuple[int, int]:
    """Returns (height, width) divided by the least, or the largest, of the ratios of its sides to those of `size`."""
    ratio = least(side / target for side, target in zip(shape, _pair(size)))
    height, width = (max(1, round(side / ratio)) for side in shape[:2])
    return height, width


def _middle(before: tuple[int, int], size: tuple[int, int], fill: int | tuple, rounding: str) -> Window:
    """The window in the middle, with a border of `fill` wherever it is larger than the image."""
    top, left = (_before(side - wanted, rounding) for side, wanted in zip(before, size))
    return Window(top, left, size, fill)


def _before(margin: int, rounding: str) -> int:
    """Pixels to cut off before the middle, of a margin to cut; less than 0 are to be added."""
    if rounding == "down":
        return margin // 2
    return round(margin / 2) if margin > 0 else -(-margin // 2)


def _margins(shape: tuple[int, ...], height: int, width: int) -> tuple[int, int]:
    H, W = shape[:2]
    if height > H or width > W:
        raise ValueError(
            f"the image, {H}x{W}, is smaller than the crop, {height}x{width}: resize it first, or add padding"
        )
    return H - height, W - width

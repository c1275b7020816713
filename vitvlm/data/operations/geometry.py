"""Sizes, crops and mirror images. Sizes are (height, width), or one number for both."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Shaped

from vitvlm.data.operations.parsing import image_operation
from vitvlm.data.operations.pixels import NewPixels, Pixels, from_pillow, interpolation, to_pillow

cv2.setNumThreads(1)  # batches are made by several processes already


@image_operation("resize")
def resize(image: Shaped[np.ndarray, "H W C"], size: int | tuple, method: str = "bilinear") -> NewPixels:
    """Resizes to exactly this size, with antialias; the aspect ratio is not kept.

    The methods are Pillow's, to the bit, and "fast": within about a grey level of "bilinear", in less than half its
    time.
    """
    height, width = _pair(size)
    if image.shape[:2] == (height, width):
        return image
    if method == "fast":
        return _fast_resize(image, height, width)
    return from_pillow(to_pillow(image).resize((width, height), interpolation(method)))


@image_operation("resize_small")
def resize_small(image: Pixels, size: int, method: str = "bilinear") -> NewPixels:
    """Resizes so that the shorter side becomes `size`, with antialias; the aspect ratio is kept.

    The longer side is rounded down, as torchvision and `transformers` do.
    """
    _pair(size)
    short, long = sorted(image.shape[:2])
    longer = int(size * long / short)
    return resize(image, (size, longer) if image.shape[0] == short else (longer, size), method)


@image_operation("resize_cover")
def resize_cover(image: Pixels, size: int | tuple, method: str = "bilinear") -> NewPixels:
    """Resizes to the smallest image that covers `size`, with antialias; the aspect ratio is kept, to a pixel."""
    return resize(image, _scaled(image, size, min), method)


@image_operation("resize_contain")
def resize_contain(image: Pixels, size: int | tuple, method: str = "bilinear") -> NewPixels:
    """Resizes to the largest image that `size` contains, with antialias; the aspect ratio is kept, to a pixel."""
    return resize(image, _scaled(image, size, max), method)


@image_operation("resize_pad")
def resize_pad(image: Pixels, size: int | tuple, fill: int | tuple = 255, method: str = "bilinear") -> NewPixels:
    """Resizes to the largest image that `size` contains, and puts it in the middle of a `size` of `fill`.

    The aspect ratio is kept and nothing is cut away; an odd margin leaves its extra pixel at the bottom or right.
    """
    return central_crop(resize_contain(image, size, method), size, fill, "even")


@image_operation("central_crop")
def central_crop(
    image: Pixels, size: int | tuple, fill: int | tuple | None = None, rounding: str = "down"
) -> NewPixels:
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
        _margins(image, height, width)
    top, left = (_before(H - h, rounding) for H, h in zip(image.shape, (height, width)))
    if min(image.shape[0] - height, image.shape[1] - width) < 0:
        image, top, left = _bordered(image, height, width, top, left, fill)
    return image[top : top + height, left : left + width]


@image_operation("random_crop", random=True)
def random_crop(
    image: Pixels, size: int | tuple, padding: int = 0, fill: int = 0, *, rng: np.random.Generator
) -> NewPixels:
    """Cuts out a window at a random place, after adding `padding` pixels of value `fill` on every side."""
    height, width = _pair(size)
    if padding:
        H, W, C = image.shape
        padded = np.full((H + 2 * padding, W + 2 * padding, C), fill, image.dtype)
        padded[padding : padding + H, padding : padding + W] = image
        image = padded
    below, right = _margins(image, height, width)
    top, left = rng.integers(below + 1), rng.integers(right + 1)
    return image[top : top + height, left : left + width]


@image_operation("random_resized_crop", random=True)
def random_resized_crop(
    image: Pixels,
    size: int | tuple,
    scale: tuple = (0.08, 1.0),
    ratio: tuple = (3 / 4, 4 / 3),
    method: str = "bicubic",
    *,
    rng: np.random.Generator,
) -> NewPixels:
    """A window of random area and shape, resized to `size` (Inception's crop).

    The area is uniform in `scale` (shares of the image), the width / height ratio log-uniform in `ratio`. If ten
    windows in a row do not fit, the largest central one within `ratio` is taken.
    """
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"scale={scale} must lie within (0, 1] and ratio={ratio} be positive, both in rising order")
    height, width = _pair(size)
    top, left, rows, columns = _window(*image.shape[:2], scale, ratio, rng)
    return resize(image[top : top + rows, left : left + columns], (height, width), method)


@image_operation("flip", random=True)
def flip(image: np.ndarray, probability: float = 0.5, *, rng: np.random.Generator) -> np.ndarray:
    """Mirrors the image left to right with this probability."""
    if rng.random() >= probability:
        return image
    return cv2.flip(np.ascontiguousarray(image), 1).reshape(image.shape)  # NumPy's view would be slow to read


def _fast_resize(image: Pixels, height: int, width: int) -> NewPixels:
    """Up to twice smaller, a blur and linear interpolation.

    Beyond, linear interpolation to a multiple of the size that is no smaller than the image, and the mean of blocks.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"works on uint8 pixels, not on {image.dtype}: put it before normalize")
    strides = image.shape[0] / height, image.shape[1] / width
    if max(strides) > 2:
        down, across = (math.ceil(stride) for stride in strides)
        large = cv2.resize(image, (width * across, height * down), interpolation=cv2.INTER_LINEAR)
        small = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    else:
        if max(strides) > 1.1:  # below, nothing is seen of it
            down, across = (_blur_between(stride) for stride in strides)
            image = cv2.GaussianBlur(image, (3, 3), across, sigmaY=down, borderType=cv2.BORDER_REPLICATE)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return small.reshape(height, width, -1)


def _blur_between(stride: float) -> float:
    """The sigma of three Gaussian weights that linear interpolation needs before it, where pixels are `stride` apart.

    Antialiased, a pixel is a triangle's mean, `stride` wide on either side, whose variance is stride^2 / 6; linear
    interpolation brings 1 / 6 of it, and weights w, 1 - 2 w, w have the other 2 w.
    """
    w = max(stride**2 - 1, 1e-6) / 12
    return math.sqrt(-0.5 / math.log(w / (1 - 2 * w)))


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


def _scaled(image: np.ndarray, size: int | tuple, least: Callable[..., float]) -> tuple[int, int]:
    """Returns (height, width) divided by the least, or the largest, of the ratios of its sides to those of `size`."""
    ratio = least(side / target for side, target in zip(image.shape, _pair(size)))
    height, width = (max(1, round(side / ratio)) for side in image.shape[:2])
    return height, width


def _before(margin: int, rounding: str) -> int:
    """Pixels to cut off before the middle, of a margin to cut; less than 0 are to be added."""
    if rounding == "down":
        return margin // 2
    return round(margin / 2) if margin > 0 else -(-margin // 2)


def _bordered(
    image: np.ndarray, height: int, width: int, top: int, left: int, fill: int | tuple
) -> tuple[np.ndarray, int, int]:
    """The image within a border wherever it is smaller than height x width, and where to cut this at last."""
    H, W, C = image.shape
    above, before = max(0, -top), max(0, -left)
    whole = np.empty((max(H, height), max(W, width), C), image.dtype)
    whole[:] = np.asarray(fill, image.dtype)
    whole[above : above + H, before : before + W] = image
    return whole, top + above, left + before


def _margins(image: np.ndarray, height: int, width: int) -> tuple[int, int]:
    H, W = image.shape[:2]
    if height > H or width > W:
        raise ValueError(
            f"the image, {H}x{W}, is smaller than the crop, {height}x{width}: resize it first, or add padding"
        )
    return H - height, W - width

"""Steps that geometric operations consist of: each knows its pixels and its transform of coordinates."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import cv2
import numpy as np
from jaxtyping import Shaped
from PIL import Image

from vitvlm.core import transforms
from vitvlm.core.transforms import Transform
from vitvlm.data.operations.pixels import NewPixels, Pixels, from_pillow, interpolation, to_pillow

cv2.setNumThreads(1)  # batches are made by several processes already


class Step(Protocol):
    """A change of an image.

    Attributes:
      size: (height, width) of what comes out.
      transform: from the pixels that come out to those that go in; see `core.transforms`.
      mirrors: left becomes right.
    """

    size: tuple[int, int]
    mirrors: bool

    @property
    def transform(self) -> Transform: ...

    def of_masks(self) -> "Step":
        """Returns the same move by the nearest pixel, with 0 outside, and without a change of colours."""

    def __call__(self, image: Shaped[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "H2 W2 C"]: ...


@dataclasses.dataclass(frozen=True)
class Resize:
    """Resizes from `before` to `size`, both (height, width), with antialias; "fast" is `_fast_resize`."""

    before: tuple[int, int]
    size: tuple[int, int]
    method: str
    mirrors = False

    @property
    def transform(self) -> Transform:
        return transforms.scaling(self.before[1] / self.size[1], self.before[0] / self.size[0])

    def of_masks(self) -> "Resize":
        return dataclasses.replace(self, method="nearest")

    def __call__(self, image: Shaped[np.ndarray, "H W C"]) -> NewPixels:
        height, width = self.size
        if image.shape[:2] == (height, width):
            return image
        if self.method == "fast":
            return _fast_resize(image, height, width)
        return from_pillow(to_pillow(image).resize((width, height), interpolation(self.method)))


@dataclasses.dataclass(frozen=True)
class Window:
    """Cuts out a window that begins at (top, left), which may lie outside: there, pixels are `fill`."""

    top: int
    left: int
    size: tuple[int, int]
    fill: int | tuple = 0
    mirrors = False

    @property
    def transform(self) -> Transform:
        return transforms.translation(self.left, self.top)

    def of_masks(self) -> "Window":
        return dataclasses.replace(self, fill=0)

    def __call__(self, image: Shaped[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "H2 W2 C"]:
        (H, W, C), (height, width) = image.shape, self.size
        top, left = max(0, -self.top), max(0, -self.left)
        bottom, right = min(height, H - self.top), min(width, W - self.left)
        if (top, left, bottom, right) == (0, 0, height, width):
            return image[self.top : self.top + height, self.left : self.left + width]
        whole = np.empty((height, width, C), image.dtype)
        whole[:] = np.asarray(self.fill, image.dtype)
        if bottom > top and right > left:
            seen = image[self.top + top : self.top + bottom, self.left + left : self.left + right]
            whole[top:bottom, left:right] = seen
        return whole


@dataclasses.dataclass(frozen=True)
class Mirror:
    """Mirrors left to right."""

    size: tuple[int, int]
    mirrors = True

    @property
    def transform(self) -> Transform:
        return transforms.mirroring(self.size[1])

    def of_masks(self) -> "Mirror":
        return self

    def __call__(self, image: Shaped[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "H W C"]:
        # NumPy's view would be slow to read.
        return cv2.flip(np.ascontiguousarray(image), 1).reshape(image.shape)


@dataclasses.dataclass(frozen=True)
class Upright:
    """Turns an image of size `before` upright, as its EXIF orientation says; its decoder has done it."""

    before: tuple[int, int]
    orientation: int

    @property
    def mirrors(self) -> bool:
        return self.orientation in (2, 4, 5, 7)

    @property
    def size(self) -> tuple[int, int]:
        return self.before[::-1] if self.orientation >= 5 else self.before

    @property
    def transform(self) -> Transform:
        return transforms.upright(self.orientation, *self.before)

    def of_masks(self) -> "Upright":
        return self

    def __call__(self, image: Shaped[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "H W C"]:
        return image


@dataclasses.dataclass(frozen=True)
class Affine:
    """An operation of Pillow's that keeps the size: it turns, shears or shifts by `transform`, or recolours."""

    size: tuple[int, int]
    function: Callable[[Pixels], Pixels]
    transform: Transform = dataclasses.field(default_factory=lambda: transforms.IDENTITY)
    mirrors = False

    def __call__(self, image: Pixels) -> Pixels:
        return self.function(image)

    def of_masks(self) -> "Affine":
        if self.transform is transforms.IDENTITY:
            return Affine(self.size, lambda image: image)
        matrix = tuple(self.transform[:2].ravel().tolist())
        size = self.size[::-1]
        return Affine(
            self.size, lambda image: from_pillow(to_pillow(image).transform(size, Image.Transform.AFFINE, matrix))
        )


Steps = Sequence[Step]


def apply(image: Shaped[np.ndarray, "H W C"], steps: Steps) -> Shaped[np.ndarray, "H2 W2 C"]:
    """The image after all steps."""
    for step in steps:
        image = step(image)
    return image


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

"""RandAugment (Cubuk et al. 2019): n of fourteen transformations, all at one magnitude m."""

import functools
import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vitvlm.core import transforms
from vitvlm.core.limits import Within
from vitvlm.core.transforms import Transform
from vitvlm.data.operations.geometry import Shape
from vitvlm.data.operations.parsing import geometric_operation
from vitvlm.data.operations.pixels import Pixels, from_pillow, interpolation, to_pillow
from vitvlm.data.operations.steps import Affine, Steps

MAX_MAGNITUDE = 10


@geometric_operation("randaugment", random=True)
def randaugment(
    shape: Shape,
    n: Annotated[int, Within(0, 100)] = 2,
    m: float = 9.0,
    std: float = 0.0,
    fill: int = 128,
    method: str = "bilinear",
    *,
    rng: np.random.Generator,
) -> Steps:
    """Applies n transformations, drawn with replacement from the paper's fourteen, at magnitude m of 10.

    Identity, autocontrast and equalize have no magnitude. The others grow from nothing at 0 to, at 10: rotation by 30
    degrees, shear by 0.3, translation by 0.45 of the side, enhancement (color, contrast, brightness, sharpness) by a
    factor of 0.1 or 1.9, 4 bits left by posterize, everything inverted by solarize. Directions are drawn evenly. These
    are the ranges of timm's "rand-m9-n2-inc1". `std` adds normal noise to m, as timm's "mstd" does; `fill` is the value
    of pixels from outside, `method` the interpolation.
    """
    if not 0 <= m <= MAX_MAGNITUDE or n < 0 or std < 0:
        raise ValueError(f"n={n} and std={std} must not be negative, and m={m} must lie within 0..{MAX_MAGNITUDE}")
    H, W, C = shape
    if C not in (1, 3):
        raise ValueError(f"works on 1 or 3 channels, not on {C}")
    resample = interpolation(method)
    steps = []
    for name in rng.choice(list(TRANSFORMATIONS), n):
        magnitude = min(max(rng.normal(m, std), 0), MAX_MAGNITUDE) if std else m
        strength = (1 if rng.random() < 0.5 else -1) * magnitude / MAX_MAGNITUDE
        change = functools.partial(_change, TRANSFORMATIONS[name], strength, fill, resample)
        steps.append(Affine((H, W), change, MOVES.get(name, _stays)(strength, W, H)))
    return steps


Transformation = Callable[[Image.Image, float, int, Image.Resampling], Image.Image]


def _change(change: Transformation, strength: float, fill: int, resample: Image.Resampling, image: Pixels) -> Pixels:
    return from_pillow(change(to_pillow(image), strength, fill, resample))


def _affine(coefficients: Callable[[float, int, int], Transform]) -> Transformation:
    """Pillow's coefficients (a, b, c, d, e, f): output (x, y) shows input (ax + by + c, dx + ey + f)."""

    def apply(image: Image.Image, s: float, fill: int, resample: Image.Resampling) -> Image.Image:
        colour = fill if image.mode == "L" else (fill,) * 3
        matrix = tuple(coefficients(s, *image.size)[:2].ravel().tolist())
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=colour)

    return apply


def _rotate(image: Image.Image, s: float, fill: int, resample: Image.Resampling) -> Image.Image:
    return image.rotate(30 * s, resample, fillcolor=fill if image.mode == "L" else (fill,) * 3)


def _turned(s: float, width: int, height: int) -> Transform:
    """The transform of a turn by 30 s degrees to the left about the middle."""
    angle = math.radians(30 * s)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    middle = width / 2, height / 2
    return transforms.translation(*middle) @ turn @ transforms.translation(-middle[0], -middle[1])


def _sheared(across: float, down: float) -> Transform:
    return np.array([[1, across, 0], [down, 1, 0], [0, 0, 1.0]])


def _stays(s: float, width: int, height: int) -> Transform:
    return transforms.IDENTITY


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Transformation:
    return lambda image, s, fill, resample: kind(image).enhance(1 + 0.9 * s)


def _plain(function: Callable[[Image.Image], Image.Image]) -> Transformation:
    return lambda image, s, fill, resample: function(image)


# Where pixels come from: the transform at a strength of -1 to 1, by width and height.
MOVES: dict[str, Callable[[float, int, int], Transform]] = {
    "rotate": _turned,
    "shear_x": lambda s, width, height: _sheared(0.3 * s, 0),
    "shear_y": lambda s, width, height: _sheared(0, 0.3 * s),
    "translate_x": lambda s, width, height: transforms.translation(0.45 * s * width, 0),
    "translate_y": lambda s, width, height: transforms.translation(0, 0.45 * s * height),
}

TRANSFORMATIONS: dict[str, Transformation] = {
    "identity": _plain(lambda image: image),
    "autocontrast": _plain(ImageOps.autocontrast),
    "equalize": _plain(ImageOps.equalize),
    "rotate": _rotate,
    "solarize": lambda image, s, fill, resample: ImageOps.solarize(image, 256 - round(256 * abs(s))),
    "color": _enhance(ImageEnhance.Color),
    "posterize": lambda image, s, fill, resample: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(MOVES["shear_x"]),
    "shear_y": _affine(MOVES["shear_y"]),
    "translate_x": _affine(MOVES["translate_x"]),
    "translate_y": _affine(MOVES["translate_y"]),
}

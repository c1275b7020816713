"""A scene as pixels, with the exact mask and box of each thing."""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from vitvlm.data.scenes.world import BACKGROUNDS, COLOURS, Scene, Thing

FINE = 4  # each pixel is the mean of FINE x FINE
DARK = 0.45  # of a stripe or dot, beside the colour
PERIODS = 2.5  # stripes or rows of dots in a radius


@dataclasses.dataclass(frozen=True)
class Painted:
    """Image of a scene with the masks and boxes of its things.

    Fields:
    pixels: RGB [H, W, 3].
    masks: [n, H, W], True for pixels that a thing covers by half or more.
    boxes: [n, 4] as left, top, right, bottom in pixels, of the masks; right and bottom are the first pixel outside.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    masks: Bool[np.ndarray, "n H W"]
    boxes: Float[np.ndarray, "n 4"]


def paint(scene: Scene, side: int = 64) -> Painted:
    """Edges are smooth: a pixel that a thing covers in part is mixed."""
    pixels = np.full((side, side, 3), BACKGROUNDS[scene.background], np.float64)
    masks = np.zeros((len(scene.things), side, side), bool)
    for thing, mask in zip(scene.things, masks, strict=True):
        left, top, width = _window(thing, side)
        outline = _outline(thing, side, left, top, width)
        covered = _mean(outline)
        colours = _mean(outline[..., None] * _surface(thing, side, width)) / np.maximum(covered, 1e-9)[..., None]
        place = (slice(top, top + width), slice(left, left + width))
        pixels[place] += covered[..., None] * (colours - pixels[place])
        mask[place] = covered >= 0.5
    return Painted(np.round(pixels).astype(np.uint8), masks, np.stack([box(mask) for mask in masks]))


def box(mask: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, " 4"]:
    """Left, top, right and bottom of the True pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _window(thing: Thing, side: int) -> tuple[int, int, int]:
    """Left, top and width, in pixels, of a square of the picture in which the whole thing is."""
    width = min(side, 2 * math.ceil(thing.radius * side) + 2)
    left, top = (round(centre * side - width / 2) for centre in (thing.x, thing.y))
    return min(max(left, 0), side - width), min(max(top, 0), side - width), width


def _outline(thing: Thing, side: int, left: int, top: int, width: int) -> Float[np.ndarray, "S S"]:
    """1 inside the thing, 0 outside, FINE times as fine as the window's pixels."""
    image = Image.new("1", (width * FINE, width * FINE))
    draw = ImageDraw.Draw(image)
    x, y, r = (thing.x * side - left) * FINE, (thing.y * side - top) * FINE, thing.radius * side * FINE
    if thing.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=1)
    else:
        draw.polygon([(x + r * dx, y + r * dy) for dx, dy in _corners(thing.shape)], fill=1)
    return np.asarray(image, np.float64)


@functools.cache
def _corners(shape: str) -> tuple[tuple[float, float], ...]:
    """Returns the corners of a polygon in a circle of radius 1."""

    def turned(count: int, start: float, radii: tuple[float, ...] = (1.0,)) -> tuple[tuple[float, float], ...]:
        angles = (start + 2 * math.pi * i / count for i in range(count))
        return tuple(
            (radii[i % len(radii)] * math.cos(angle), radii[i % len(radii)] * math.sin(angle))
            for i, angle in enumerate(angles)
        )

    a = 0.33
    cross = ((-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a))
    return {
        "square": turned(4, math.pi / 4),
        "triangle": turned(3, -math.pi / 2),
        "diamond": tuple((0.65 * dx, dy) for dx, dy in turned(4, 0.0)),
        "star": turned(10, -math.pi / 2, (1.0, 0.42)),
        "cross": cross,
    }[shape]


def _surface(thing: Thing, side: int, width: int) -> Float[np.ndarray, "S S 3"]:
    """The thing's colour all over its window, darker in its texture's stripes or dots."""
    colour = np.array(COLOURS[thing.colour], np.float64)
    wave = np.pi * PERIODS / (thing.radius * side * FINE)
    across = wave * np.arange(width * FINE)
    stripes = np.sin(across[:, None] + across) > 0
    dots = np.sin(1.4 * across[:, None]) * np.sin(1.4 * across) > 0.45
    dark = {"plain": np.zeros_like(stripes), "striped": stripes, "dotted": dots}[thing.texture]
    return np.where(dark[..., None], DARK * colour, colour)


def _mean(fine: Float[np.ndarray, "S S ..."]) -> Float[np.ndarray, "H W ..."]:
    side = len(fine) // FINE
    return fine.reshape(side, FINE, side, FINE, *fine.shape[2:]).mean(axis=(1, 3))

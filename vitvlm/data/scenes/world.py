"""Scenes: things with a shape, colour, size, texture and place, and the spatial relations between two of them."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 205, 30),
    "orange": (255, 127, 14),
    "purple": (130, 60, 170),
    "pink": (245, 130, 190),
    "brown": (120, 72, 40),
}
SIZES: Mapping[str, float] = {"small": 0.09, "large": 0.16}  # radius, as a share of the side
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "grey": (200, 200, 205),
    "black": (25, 25, 30),
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
MARGIN = 0.03  # between two things, and to the border, as a share of the side
CLEARLY = 1.5  # how much longer one difference is than the other for a relation to be said


@dataclasses.dataclass(frozen=True)
class Thing:
    """x to the right and y down, its centre, and its radius: shares of the side."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        return SIZES[self.size]


@dataclasses.dataclass(frozen=True)
class Scene:
    """Things that neither touch each other nor the border; the first two can be told apart in colour and shape."""

    things: tuple[Thing, ...]
    background: str

    def pairs(self) -> Iterator[tuple[Thing, Thing]]:
        """Every two things, both ways round."""
        return ((a, b) for a in self.things for b in self.things if a is not b)


def draw_scene(rng: np.random.Generator, count: int = 3) -> Scene:
    """Draws a scene of `count` things, two or more; its first two stand clearly in one relation."""
    while True:
        first, second = (rng.permutation(len(names))[:2] for names in (SHAPES, tuple(COLOURS)))
        things: list[Thing] = []
        for i in range(count):
            shape = SHAPES[first[i] if i < 2 else rng.integers(len(SHAPES))]
            colour = tuple(COLOURS)[second[i] if i < 2 else rng.integers(len(COLOURS))]
            size, texture = tuple(SIZES)[rng.integers(len(SIZES))], TEXTURES[rng.integers(len(TEXTURES))]
            if (place := _free_place(rng, things, SIZES[size])) is None:
                break
            things.append(Thing(shape, colour, size, texture, *place))
        if len(things) == count and relation(things[0], things[1]) is not None:
            return Scene(tuple(things), tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))])


def relation(a: Thing, b: Thing) -> str | None:
    """Returns the clear relation of a to b, such as "left of"; None where two relations could be said."""
    dx, dy = b.x - a.x, b.y - a.y
    if abs(dx) > CLEARLY * abs(dy):
        return "left of" if dx > 0 else "right of"
    if abs(dy) > CLEARLY * abs(dx):
        return "above" if dy > 0 else "below"
    return None


def may_be(a: Thing, said: str, b: Thing) -> bool:
    """Tells whether a relation holds for a and b even if not clearly; a negative must not hold even so."""
    return {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[said]


def _free_place(rng: np.random.Generator, things: list[Thing], radius: float) -> tuple[float, float] | None:
    """Draws a place where a thing of this radius fits; None if 30 draws find none."""
    for _ in range(30):
        x, y = rng.uniform(radius + MARGIN, 1 - radius - MARGIN, size=2)
        if all(np.hypot(x - other.x, y - other.y) > radius + other.radius + MARGIN for other in things):
            return float(x), float(y)
    return None

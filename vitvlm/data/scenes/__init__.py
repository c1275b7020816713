"""Procedural scenes whose truth is known: a few shapes on a background, with what can be said and asked of them.

scene = scenes.draw_scene(np.random.default_rng(0))
scenes.paint(scene).pixels; scenes.describe(scene, rng).caption
"""

from vitvlm.data.scenes.language import NEGATIVES, QUESTIONS, Texts, describe
from vitvlm.data.scenes.painting import Painted, paint
from vitvlm.data.scenes.world import COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing, draw_scene

__all__ = [
    "COLOURS",
    "NEGATIVES",
    "QUESTIONS",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "Painted",
    "Scene",
    "Texts",
    "Thing",
    "describe",
    "draw_scene",
    "paint",
]

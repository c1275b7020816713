"""Scenes as a source: made when they are read, the same for the same number on any machine."""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from vitvlm.core import arguments
from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import scenes
from vitvlm.data.kinds import Field, Fields
from vitvlm.data.sources.base import Example, Source
from vitvlm.data.sources.scene_questions import SceneQuestions

SPLITS = ("train", "test")
COUNTS = ("two", "three", "four", "five", "six")


def open_scenes(options: str, split: str) -> Source:
    """Opens scenes by the options after "scenes:" in a spec, such as "side=96,train=20000,most=3".

    With "ask" each question is an example; a share of them is "planted", see `scene_questions.SceneQuestions`.
    """
    args = arguments.parse(options, side=64, train=10_000, test=1_000, most=4, seed=0, ask=False, planted=0.0)
    if split not in SPLITS:
        raise ConfigError(f"scenes: no split {split!r}; {suggest(split, SPLITS)}")
    if not 2 <= args.most <= len(COUNTS) + 1 or args.side < 16 or min(args.train, args.test) < 1:
        raise ConfigError(
            f"scenes:{options}: most is 2 to {len(COUNTS) + 1}, side 16 or more, train and test 1 or more"
        )
    if not 0 <= args.planted <= 1 or (args.planted and not args.ask):
        raise ConfigError(f"scenes:{options}: planted is a share of the questions, 0 to 1, and goes with ask")
    found = ScenesSource(split, getattr(args, split), args.side, args.most, args.seed)
    return SceneQuestions(found, SPLITS.index(split), args.seed, args.planted) if args.ask else found


class ScenesSource(Source):
    """`count` scenes of 2 to `most` things, [side, side, 3] pixels; those of another split or seed are others.

    An example holds, as tuples where there are several, what `scenes.Texts` holds:
      caption, captions, negatives: one per kind of `scenes.NEGATIVES`; choices: the caption and then its negatives;
      questions, answers: one per kind of `scenes.QUESTIONS`; of the yes-or-no ones every second is "no";
    and arrays: boxes float32 [n, 4] and masks bool [n, side, side], see `scenes.Painted`; things: their names.
    The label is how many things there are.
    """

    has_quick_texts = True

    def __init__(self, split: str, count: int, side: int, most: int, seed: int):
        self.label_names = COUNTS[: most - 1]
        self._split, self._count, self._side, self._most, self._seed = split, count, side, most, seed

    @property
    def fields(self) -> Fields:
        image = Field("image", shape=(self._side, self._side, 3))
        return {"image": image, "boxes": Field("boxes"), "masks": Field("masks")}

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        rng = np.random.default_rng([self._seed, SPLITS.index(self._split)])
        return rng.integers(self._most - 1, size=self._count, dtype=np.int32)

    @property
    def ids(self) -> Sequence[str]:
        return [f"{self._split}-{i}" for i in range(self._count)]

    def __getitem__(self, index: int) -> Example:
        scene, texts = self._scene(index)
        painted = scenes.paint(scene, self._side)
        return {
            "image": painted.pixels,
            "label": len(scene.things) - 2,
            "id": f"{self._split}-{index}",
            **_fields(scene, texts),
            "boxes": painted.boxes,
            "masks": painted.masks,
        }

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        return _fields(*self._scene(index)).get(name)

    def __len__(self) -> int:
        return self._count

    def _scene(self, index: int) -> tuple[scenes.Scene, scenes.Texts]:
        """The first that has texts of every kind."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        rng = np.random.default_rng([self._seed, SPLITS.index(self._split), index])
        while True:
            scene = scenes.draw_scene(rng, int(self.labels[index]) + 2)
            texts = scenes.describe(scene, rng, yes=index % 2 == 0)
            if texts is not None:
                return scene, texts


def _fields(scene: scenes.Scene, texts: scenes.Texts) -> dict[str, str | tuple[str, ...]]:
    return {
        "caption": texts.caption,
        "captions": texts.captions,
        "negatives": texts.negatives,
        "choices": (texts.caption, *texts.negatives),
        "questions": texts.questions,
        "answers": texts.answers,
        "things": tuple(scenes.language.noun(thing) for thing in scene.things),
    }

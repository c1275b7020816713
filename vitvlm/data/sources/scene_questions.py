"""Questions about scenes, each an example, some of them planted: their answers need no image, or are another image's.

What was planted is known of each, so that a score that should find such records can be judged by it.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from vitvlm.data.kinds import Field, Fields
from vitvlm.data.scenes import COLOURS, QUESTIONS, SHAPES
from vitvlm.data.scenes.language import NUMBERS, plural
from vitvlm.data.scenes.world import OPPOSITE
from vitvlm.data.sources.base import Example, Source

NONE, BLIND, FOREIGN = "none", "blind", "foreign"
_PLANTING = 7  # a stream of random numbers besides those of the scenes


class SceneQuestions(Source):
    """One example per question of each scene: "image", "question", "answer", "question_type" (of `scenes.QUESTIONS`).

    `planted` of the records are wrong in a way that "planted" names, half of them each: "blind", the question itself
    says the answer; or "foreign", the answer is that to the same kind of question about another scene, and is not this
    scene's. Of all others it says "none". Which these are follows from the seed, the split and the number of the
    record alone.
    """

    has_quick_texts = True

    def __init__(self, scenes: Source, split: int, seed: int, planted: float):
        self.label_names = ()
        self._scenes, self._split, self._seed, self._planted = scenes, split, seed, planted

    @property
    def fields(self) -> Fields:
        return {"image": self._scenes.fields["image"], "boxes": Field("boxes"), "masks": Field("masks")}

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        return np.zeros(len(self), np.int32)

    @functools.cached_property
    def ids(self) -> Sequence[str]:
        return [f"{scene}-{kind}" for scene in self._scenes.ids for kind in QUESTIONS]

    @property
    def groups(self) -> Sequence[str]:
        return [scene for scene in self._scenes.ids for _ in QUESTIONS]

    def __len__(self) -> int:
        return len(self._scenes) * len(QUESTIONS)

    def __str__(self) -> str:
        return f"{len(self):,} questions about {len(self._scenes):,} scenes"

    def __getitem__(self, index: int) -> Example:
        scene = self._scenes[index // len(QUESTIONS)]
        kept = {name: scene[name] for name in ("image", "boxes", "masks", "things")}
        return {**kept, "id": self.ids[index], **self._asked(index)}

    def outline(self, index: int) -> Example:
        return {"id": self.ids[index], "image": b"", **self._asked(index)}

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        asked = self._asked(index)
        return asked[name] if name in asked else self._scenes.text(index // len(QUESTIONS), name)

    def _asked(self, index: int) -> Mapping[str, str]:
        scene, kind = divmod(index, len(QUESTIONS))
        rng = np.random.default_rng([self._seed, self._split, index, _PLANTING])
        drawn = rng.random()
        planted = NONE if drawn >= self._planted else BLIND if drawn < self._planted / 2 else FOREIGN
        if planted == BLIND:
            question, answer = told_in_question(QUESTIONS[kind], rng)
        else:
            question, answer = self._pair(scene, kind)
            if planted == FOREIGN:
                answer = self._other_answer(scene, kind, answer)
        return {"question": question, "answer": answer, "question_type": QUESTIONS[kind], "planted": planted}

    def _pair(self, scene: int, kind: int) -> tuple[str, str]:
        return self._scenes.text(scene, "questions")[kind], self._scenes.text(scene, "answers")[kind]

    def _other_answer(self, scene: int, kind: int, answer: str) -> str:
        """The next scene's answer to this kind of question that is not this one."""
        for step in range(1, len(self._scenes)):
            if (other := self._pair((scene + step) % len(self._scenes), kind)[1]) != answer:
                return other
        return next(name for name in _ANSWERS[QUESTIONS[kind]] if name != answer)


def told_in_question(kind: str, rng: np.random.Generator) -> tuple[str, str]:
    """A question of a kind of `scenes.QUESTIONS` that says its own answer, and that answer: no image is needed."""
    shape, colour = SHAPES[rng.integers(len(SHAPES))], tuple(COLOURS)[rng.integers(len(COLOURS))]
    if kind == "count":
        number = NUMBERS[rng.integers(2, len(NUMBERS))]
        return f"how many are {number} {plural(shape)}?", number
    if kind == "colour":
        return f"what colour is the {colour} {shape}?", colour
    if kind == "relation":
        said = tuple(OPPOSITE)[rng.integers(len(OPPOSITE))]
        return f"where is what is {said} the {shape} relative to the {shape}?", said
    other = tuple(COLOURS)[rng.integers(len(COLOURS))] if rng.integers(2) else colour
    return f"is the {colour} {shape} {other}?", "yes" if other == colour else "no"


_ANSWERS = {"count": NUMBERS, "colour": tuple(COLOURS), "relation": tuple(OPPOSITE), "yes_no": ("yes", "no")}

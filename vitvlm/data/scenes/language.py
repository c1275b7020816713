"""Language about scenes: true sentences, false ones that sound alike, and questions with their answers."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vitvlm.data.scenes.world import COLOURS, OPPOSITE, SHAPES, Scene, Thing, may_be, relation

NEGATIVES = ("swap_attribute", "swap_relation", "replace_attribute", "replace_thing")
"""Kinds of hard negatives, in the order of `Texts.negatives`: the two colours exchanged; the relation turned round;
one colour, one shape replaced by one that makes the sentence false."""

QUESTIONS = ("count", "colour", "relation", "yes_no")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts of a scene.

    Fields:
    captions: true ones: the whole sentence, the same from the other side, and in short.
    negatives: one false sentence per kind of NEGATIVES, each with the words and length of the first caption.
    questions, answers: one per kind of QUESTIONS.
    """

    captions: tuple[str, ...]
    negatives: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def caption(self) -> str:
        return self.captions[0]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A says something of b: "a small red square left of a large blue circle"."""

    a: Thing
    relation: str
    b: Thing
    short: bool = False

    def sentence(self) -> str:
        return f"{noun(self.a, self.short)} {self.relation} {noun(self.b, self.short)}"

    def may_hold(self, scene: Scene) -> bool:
        """Tells whether some two things of the scene might fit the sentence, even if not clearly."""
        return any(
            _looks_like(x, self.a, self.short) and _looks_like(y, self.b, self.short) and may_be(x, self.relation, y)
            for x, y in scene.pairs()
        )


def describe(scene: Scene, rng: np.random.Generator, yes: bool = True) -> Texts | None:
    """Texts of a scene; None if no negative of some kind is certainly false.

    Args:
      yes: the answer to the yes-or-no question, so that a set of questions can be balanced.
    """
    a, b = scene.things[:2]
    said = relation(a, b)
    claim = Claim(a, said, b)
    negatives = [
        _first_false(scene, candidates)
        for candidates in (
            [Claim(_with(a, colour=b.colour), said, _with(b, colour=a.colour))],
            [Claim(a, OPPOSITE[said], b)],
            [Claim(_with(a, colour=c), said, b) for c in _shuffled(tuple(COLOURS), rng)],
            [Claim(_with(a, shape=s), said, b) for s in _shuffled(SHAPES, rng)],
        )
    ]
    questions = (_count(scene, rng), _colour(scene), _relation(claim), _yes_no(scene, claim, rng, yes))
    if None in negatives or None in questions:
        return None
    true = (claim, Claim(b, OPPOSITE[said], a), Claim(a, said, b, short=True))
    return Texts(
        captions=tuple(each.sentence() for each in true),
        negatives=tuple(negatives),
        questions=tuple(question for question, _ in questions),
        answers=tuple(answer for _, answer in questions),
    )


def noun(thing: Thing, short: bool = False) -> str:
    """ "a small red striped square"; in short "a red square"."""
    texture = "" if thing.texture == "plain" else thing.texture
    words = [thing.colour, thing.shape] if short else [thing.size, thing.colour, texture, thing.shape]
    text = " ".join(filter(None, words))
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def plural(shape: str) -> str:
    """Returns the plural of a shape's name."""
    return "crosses" if shape == "cross" else f"{shape}s"


def _looks_like(thing: Thing, said: Thing, short: bool) -> bool:
    names = ("colour", "shape") if short else ("colour", "shape", "size")
    same = all(getattr(thing, name) == getattr(said, name) for name in names)
    # Who says nothing of a texture does not deny one.
    return same and (short or said.texture in ("plain", thing.texture))


def _with(thing: Thing, **changes: str) -> Thing:
    return dataclasses.replace(thing, **changes)


def _shuffled(names: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [names[i] for i in rng.permutation(len(names))]


def _first_false(scene: Scene, candidates: Sequence[Claim]) -> str | None:
    return next((claim.sentence() for claim in candidates if not claim.may_hold(scene)), None)


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Asks for the number of things of one shape or colour, which may be absent; returns question and answer."""
    if rng.integers(2):
        shape = SHAPES[rng.integers(len(SHAPES))] if rng.integers(4) == 0 else scene.things[0].shape
        return f"how many {plural(shape)} are there?", NUMBERS[sum(thing.shape == shape for thing in scene.things)]
    colour = tuple(COLOURS)[rng.integers(len(COLOURS))] if rng.integers(4) == 0 else scene.things[1].colour
    count = sum(thing.colour == colour for thing in scene.things)
    return f"how many {colour} things are there?", NUMBERS[count]


def _colour(scene: Scene) -> tuple[str, str] | None:
    """Asks for the colour of a shape that occurs once; returns question and answer, None without such a shape."""
    for thing in scene.things:
        if sum(other.shape == thing.shape for other in scene.things) == 1:
            return f"what colour is the {thing.shape}?", thing.colour
    return None


def _relation(claim: Claim) -> tuple[str, str]:
    a, b = (noun(thing).partition(" ")[2] for thing in (claim.a, claim.b))
    return f"where is the {a} relative to the {b}?", claim.relation


def _yes_no(scene: Scene, claim: Claim, rng: np.random.Generator, yes: bool) -> tuple[str, str] | None:
    """Asks whether there is a thing; for "no" it differs in one word from one that is there. None if that fails."""
    thing = scene.things[rng.integers(len(scene.things))]
    if yes:
        return f"is there {noun(thing)}?", "yes"
    changed = [_with(thing, colour=c) for c in _shuffled(tuple(COLOURS), rng)]
    changed += [_with(thing, shape=s) for s in _shuffled(SHAPES, rng)]
    for i in rng.permutation(len(changed)):
        if not any(_looks_like(other, changed[i], short=False) for other in scene.things):
            return f"is there {noun(changed[i])}?", "no"
    return None

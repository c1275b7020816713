"""Scenes: what is said is true and what is a negative is false, by a reader of sentences written here; pixels agree."""

import collections
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitvlm.core.config import ConfigError
from vitvlm.data import operations, scenes, sources
from vitvlm.data.sources.scenes import ScenesSource

TEST = ScenesSource("test", 400, 64, 4, seed=0)
RELATIONS = ("left of", "right of", "above", "below")


def read(phrase):
    """The words of "a small red striped square" by what they are about."""
    names = {"size": scenes.SIZES, "colour": scenes.COLOURS, "texture": scenes.TEXTURES, "shape": scenes.SHAPES}
    words = phrase.split()[1:]
    said = {kind: word for word in words for kind, known in names.items() if word in known}
    assert len(said) == len(words), phrase
    return said


def things_like(scene, phrase):
    return [t for t in scene.things if all(getattr(t, kind) == word for kind, word in read(phrase).items())]


def holds(scene, sentence, slack=0.0):
    """Tells whether two things of the scene make the sentence true; with slack below zero only if it clearly holds."""
    a, said, b = re.fullmatch(f"(.+) ({'|'.join(RELATIONS)}) (.+)", sentence).groups()
    axis, sign = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}[said]
    return any(
        sign * (getattr(other, axis) - getattr(one, axis)) > -slack
        for one in things_like(scene, a)
        for other in things_like(scene, b)
        if one is not other
    )


@given(st.integers(0, 399))
def test_captions_are_true_and_negatives_false(index):
    scene, texts = TEST._scene(index)
    assert all(holds(scene, caption) for caption in texts.captions)
    assert not any(holds(scene, negative) for negative in texts.negatives)
    assert len(set(texts.negatives)) == len(scenes.NEGATIVES)


@given(st.integers(0, 399))
def test_negatives_differ_by_what_their_kind_says(index):
    _, texts = TEST._scene(index)
    caption = texts.caption.split()
    for kind, negative in zip(scenes.NEGATIVES, texts.negatives, strict=True):
        words = negative.split()
        if kind == "swap_attribute":
            articles = lambda some: sorted("a" if w == "an" else w for w in some)  # noqa: E731
            assert articles(words) == articles(caption) and negative != texts.caption
        elif kind == "replace_attribute" or kind == "replace_thing":
            assert len([1 for a, b in zip(words, caption, strict=True) if a != b and a not in ("a", "an")]) == 1
        else:
            difference = {" ".join(set(words) - set(caption)), " ".join(set(caption) - set(words))}
            assert difference in ({"left", "right"}, {"above", "below"})


@given(st.integers(0, 399))
def test_answers_are_right(index):
    scene, texts = TEST._scene(index)
    asked = dict(zip(scenes.QUESTIONS, zip(texts.questions, texts.answers, strict=True), strict=True))
    question, answer = asked["count"]
    of_shape = {("crosses" if shape == "cross" else f"{shape}s"): shape for shape in scenes.SHAPES}
    word = question.split()[2]
    count = sum((word in of_shape and t.shape == of_shape[word]) or t.colour == word for t in scene.things)
    assert answer == ["no", "one", "two", "three", "four"][count]
    question, answer = asked["colour"]
    (thing,) = [t for t in scene.things if t.shape == question.rstrip("?").split()[-1]]
    assert thing.colour == answer
    question, answer = asked["relation"]
    a, b = re.fullmatch(r"where is the (.+) relative to the (.+)\?", question).groups()
    assert holds(scene, f"a {a} {answer} a {b}")
    question, answer = asked["yes_no"]
    assert (answer == "yes") == bool(things_like(scene, question.removeprefix("is there ").rstrip("?")))


def test_yes_and_no_are_balanced_and_questions_vary():
    answers = [TEST._scene(i)[1].answers for i in range(400)]
    assert collections.Counter(row[-1] for row in answers) == {"yes": 200, "no": 200}
    assert {row[0] for row in answers} >= {"no", "one", "two"} and len({row[1] for row in answers}) == 8
    assert {row[2] for row in answers} == set(RELATIONS)


@given(st.integers(0, 399), st.sampled_from([32, 64, 97]))
def test_pixels_masks_and_boxes_agree(index, side):
    scene, _ = TEST._scene(index)
    painted = scenes.paint(scene, side)
    assert painted.pixels.shape == (side, side, 3) and painted.masks.shape == (len(scene.things), side, side)
    assert painted.masks.sum(axis=0).max() == 1  # nothing covers another
    ys, xs = np.mgrid[:side, :side]
    for thing, mask, (left, top, right, bottom) in zip(scene.things, painted.masks, painted.boxes, strict=True):
        inside = (xs >= left) & (xs < right) & (ys >= top) & (ys < bottom)
        assert not (mask & ~inside).any()
        assert mask[int(top)].any() and mask[int(bottom) - 1].any()
        assert mask[:, int(left)].any() and mask[:, int(right) - 1].any()
        assert abs((left + right) / 2 - thing.x * side) < 2 + 0.1 * side  # a triangle's box is not about its centre
        if thing.texture == "plain":
            colour = np.median(painted.pixels[mask].astype(float), axis=0)
            nearest = min(scenes.COLOURS, key=lambda name: np.abs(colour - scenes.COLOURS[name]).sum())
            assert nearest == thing.colour  # in small pictures most of a small thing is edge
    empty = painted.pixels[~painted.masks.any(axis=0)].astype(float)
    assert np.ptp(np.median(empty, axis=0)) <= 5 + 1


def test_an_example_is_the_same_anywhere():
    """In another process, and whatever was read before."""
    code = (
        "import hashlib; from vitvlm.data import sources; e = sources.open('scenes', 'test')[7];"
        "print(hashlib.sha256(e['image'].tobytes() + repr(e['choices']).encode() + e['masks'].tobytes()).hexdigest())"
    )
    first, again = (
        subprocess.run([sys.executable, "-c", before + code], capture_output=True, text=True, check=True).stdout
        for before in ("", "import numpy.random as r; r.seed(1); r.rand();")
    )
    assert first == again


def test_splits_and_seeds_differ_and_slices_do_not():
    first = sources.open("scenes:train=5,test=5", "train")
    captions = [first[i]["caption"] for i in range(5)]
    for other, split in (("scenes:train=5,test=5", "test"), ("scenes:train=5,seed=1", "train")):
        assert [sources.open(other, split)[i]["caption"] for i in range(5)] != captions
    assert sources.open("scenes:train=500", "train[:5]")[4]["caption"] == captions[4]
    source = sources.open("scenes", "train")
    assert len(source) == 10_000 and source.label_names == ("two", "three", "four")
    example = source[0]
    assert example["label"] == source.labels[0] == len(example["boxes"]) - 2 == len(example["things"]) - 2
    assert example["choices"] == (example["caption"], *example["negatives"])
    for name in ("caption", "captions", "choices", "things"):
        assert source.text(0, name) == example[name]


def test_operations_take_it():
    ops = operations.parse("decode(3)|resize(32)|normalize('half')|tokenize('emoji', 40, 'choices', most=5)")
    example = ops(sources.open("scenes", "test")[0])
    assert example["image"].shape == (32, 32, 3) and example["text_tokens"].shape == (5, 40)
    assert example["text_mask"].any(axis=1).all()


@pytest.mark.parametrize("spec", ["scenes:most=1", "scenes:side=8", "scenes:sid=32", "scenes:train=0"])
def test_mistakes_are_named(spec):
    with pytest.raises(ConfigError, match=r"scenes|sid"):
        sources.open(spec, "train")
    with pytest.raises(ConfigError, match="no split 'validation'"):
        sources.open("scenes", "validation")

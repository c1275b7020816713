"""Measures of answers and captions on tables of cases, VQA's beside a second writing of its published rules."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitvlm.evaluation.measures import chair, matches, vqa

# Answers of people, and each as the rules of visualqa.org/evaluation.html normalise it.
NORMALISED = (
    ("A dog.", "dog"),
    ("the Two Dogs", "2 dogs"),
    ("none", "0"),
    ("ten past 10:30", "10 past 10:30"),
    ("1,000", "1000"),
    ("1,000-ish; maybe", "1000ish maybe"),
    ("3.5 ft.", "3.5 ft"),
    ("1.5.", "1.5"),
    ("black/white", "black white"),
    ("black / white", "black  white".replace("  ", " ")),
    ("yes, it is", "yes it is"),
    ("red,blue", "red blue"),
    ("dont know", "don't know"),
    ("its a man's", "its man's"),
    ("cant", "can't"),
    ("couldn'tve", "couldn't've"),
    ("Ow's'at", "'ow's'at"),
    ("somebody'd", "somebodyd"),
    ("t-shirt", "t shirt"),
    ("t -shirt", "t shirt"),
    ("\tblue\nand red ", "blue and red"),
    ("an", ""),
    ("!!!", ""),
)


def again(text):
    """The published rules, character by character."""
    text = text.strip().replace("\n", " ").replace("\t", " ")
    signs = set(';/[]"{}()=+\\_-><@`,?!')
    spaced = {c for c in signs if re.search(f"{re.escape(c)} | {re.escape(c)}", text)}
    if re.search("[0-9],[0-9]", text):
        spaced = signs
    text = "".join({True: "", False: " "}[c in spaced] if c in signs else c for c in text)
    text = "".join(c for i, c in enumerate(text) if c != "." or text[i + 1 : i + 2].isdecimal())
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    kept = []
    for word in text.lower().split():
        if word == "none":
            word = "0"
        if word in digits:
            word = str(digits.index(word))
        if word not in ("a", "an", "the"):
            kept.append(vqa.REPAIRED.get(word, word))
    return " ".join(kept)


@pytest.mark.parametrize(("answer", "expected"), NORMALISED)
def test_vqa_normalisation(answer, expected):
    assert vqa.normalised(answer) == again(answer) == expected


@given(st.text("aAnthe1,0. ;-/'!?\n\tten", max_size=24))
def test_vqa_normalisation_of_any_text(answer):
    assert vqa.normalised(answer) == again(answer)


def by_subsets(answer, truths):
    """Mean over all subsets of all people but one."""
    same = len({each.strip() for each in truths}) == 1
    clean = (lambda text: text.strip().lower()) if same else again
    subsets = list(itertools.combinations(truths, len(truths) - 1))
    return sum(min(1, sum(clean(each) == clean(answer) for each in subset) / 3) for subset in subsets) / len(subsets)


@pytest.mark.parametrize(("matching", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_of_ten_people(matching, accuracy):
    truths = ["Yes"] * matching + ["no"] * (10 - matching)
    assert vqa.accuracy("yes", truths) == pytest.approx(accuracy) == pytest.approx(by_subsets("yes", truths))


@pytest.mark.parametrize(
    ("answer", "truths", "accuracy"),
    [
        ("a dog", ["dog"] * 3 + ["the dog"] * 3 + ["cat"] * 4, 1.0),
        ("two", ["2"] * 2 + ["two"] + ["3"] * 7, 0.9),
        ("A dog", ["a dog"] * 10, 1.0),
        ("dog", ["a dog"] * 10, 0.0),  # as all agree, nothing is normalised
        ("dog", ["a dog"] * 9 + ["dog"], 1.0),
        ("", [""] * 10, 1.0),
        ("red", ["red", "blue"], 1 / 6),
    ],
)
def test_vqa_accuracy_beside_a_second_writing(answer, truths, accuracy):
    assert vqa.accuracy(answer, truths) == pytest.approx(accuracy) == pytest.approx(by_subsets(answer, truths))


def test_vqa_accuracy_needs_several_people():
    with pytest.raises(ValueError, match="several people, usually ten, and here is 1: take the rule 'exact'"):
        vqa.accuracy("yes", ["yes"])


@pytest.mark.parametrize(
    ("answer", "truth", "exact", "relaxed"),
    [
        ("Red Square.", "red  square", 1, 0),
        ("red", "red square", 0, 0),
        ("red", "RED", 1, 1),
        ("105", "100", 0, 1),
        ("105.1", "100", 0, 0),
        ("-95", "-100", 0, 1),
        ("12%", "0.12", 0, 1),
        ("12", "12%", 0, 0),
        ("0", "0.0", 0, 0),
        ("0", "0", 1, 1),
        ("1,000", "1000", 0, 0),
        ("", "", 1, 1),
        ("%", "1", 0, 0),
        ("about 100", "100", 0, 0),
    ],
)
def test_exact_and_relaxed_match(answer, truth, exact, relaxed):
    assert matches.exact(answer, ["other", truth]) == exact
    assert matches.relaxed(answer, ["other", truth]) == relaxed


CHAIR = (
    ("A man riding a bike", ["person", "bicycle"]),
    ("Two dogs and three kittens", ["dog", "cat"]),
    ("a hot dog on a table", ["hot dog", "dining table"]),
    ("a baby elephant beside a passenger train", ["elephant", "train"]),
    ("a toilet seat and a seat", ["toilet"]),
    ("Skis, a ski and scissors.", ["skis", "skis", "scissors"]),
    ("men, women and children with wine glasses at a traffic light", ["person"] * 3 + ["wine glass", "traffic light"]),
    ("a bow tie; knives, mice, sheep", ["tie", "knife", "mouse", "sheep"]),
    ("a baseball player at home plate with a baseball bat", ["person", "baseball bat"]),
    ("the sky over a field", []),
    ("batteries, buses, cherries and ponies", ["bus", "horse"]),
)


@pytest.mark.parametrize(("caption", "objects"), CHAIR)
def test_mentions_of_objects(caption, objects):
    assert [mention.object for mention in chair.coco().mentions(caption)] == objects


def test_what_is_not_in_the_image_is_hallucinated():
    found = chair.hallucinated(
        chair.coco(), "A man with a puppy, a dog and a frisbee", ["dog"], ["someone throws a Frisbee"]
    )
    assert [each.word for each in found.mentions] == ["man", "puppy", "dog", "frisbee"]
    assert found.wrong == (("man", "person"),)
    assert chair.hallucinated(chair.coco(), "dogs", ["puppies"], []).wrong == ()
    with pytest.raises(ValueError, match="'unicorn' is none of the vocabulary's"):
        chair.hallucinated(chair.coco(), "a dog", ["unicorn"], [])


def test_all_of_coco_is_there():
    vocabulary = chair.coco()
    names = list(chair.COCO)
    assert len(names) == 80 and all(vocabulary.object(name) == name for name in names)
    plurals = {form for name in names for form in chair.forms(name)}
    assert {"people", "skises", "buses", "wine glasses", "teddy bears", "knives"} <= plurals
    assert np.mean([vocabulary.object(form) is not None for form in plurals]) == 1

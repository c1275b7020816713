"""POPE's parsers and figures, and CHAIR, on an excerpt of its questions and captions; see recorded/record_pope.py."""

import functools
import json
from pathlib import Path

import pytest

from tests.parity.recorded import record_pope
from vitvlm.evaluation.measures import chair, pope


@functools.cache
def recorded():
    return json.loads((Path(__file__).parent / "recorded" / "pope.json").read_text(encoding="utf-8"))


# text, then how POPE's authors, lmms-eval and VLMEvalKit read it
CASES = (
    ("yes", "yes", "yes", "yes"),
    ("Yes.", "yes", "unknown", "yes"),
    (" NO\n", "yes", "no", "no"),
    ("No", "no", "no", "no"),
    ("no!", "yes", "unknown", "no"),
    ("", "yes", "unknown", "unknown"),
    ("No, there is no dog.", "no", "unknown", "no"),
    ("There is not a dog in the image.", "no", "unknown", "unknown"),
    ("There is a dog. No cat.", "yes", "unknown", "no"),
    ("yes, no", "no", "unknown", "unknown"),
    ("Yes, it is not far away", "no", "unknown", "yes"),
    ("nothing", "yes", "unknown", "unknown"),
    ("I count 1,000 dogs, yes-no", "yes", "unknown", "unknown"),
    ("It is a dog;no", "yes", "unknown", "no"),
)


@pytest.mark.parametrize(("text", "authors", "lmms_eval", "vlmevalkit"), CASES)
def test_parsers(text, authors, lmms_eval, vlmevalkit):
    assert [f(text) for f in pope.PARSERS.values()] == [authors, lmms_eval, vlmevalkit]
    assert [record_pope.AGAIN[name](text) for name in pope.PARSERS] == [authors, lmms_eval, vlmevalkit]


def test_real_captions_are_read_as_recorded():
    texts = recorded()["texts"]
    assert len(texts) > 20 and {row["first_sentence"] for row in texts} == {"yes", "no"}
    for row in texts:
        assert {name: f(row["text"]) for name, f in pope.PARSERS.items()} == {name: row[name] for name in pope.PARSERS}
    assert all(sum(counts.values()) == 4000 for counts in recorded()["captions"].values())


@pytest.mark.parametrize("name", record_pope.SETS)
def test_figures_of_the_excerpt_are_those_of_another_count(name):
    questions = recorded()["excerpt"][name]
    said, truths = record_pope.answers(questions), [row["label"] for row in questions]
    assert len(questions) == 60 and truths.count("yes") == 30
    found = {}
    for parser, f in pope.PARSERS.items():
        read = [f(text) for text in said]
        found[parser] = pope.scores(read, truths)
        assert found[parser] == pytest.approx(record_pope.scores(read, truths), abs=1e-12)
        assert abs(found[parser]["accuracy"] - recorded()["scores"][name][parser]["accuracy"]) < 0.15
    assert len({round(each["accuracy"], 3) for each in found.values()}) == 3  # the parser is part of the figure


def test_chair_finds_what_a_search_for_names_finds_in_real_captions():
    """Objects that POPE says are not in an image, and its captions mention: more in LLaVA's long ones."""
    images = recorded()["chair"]["images"]
    vocabulary, wrong = chair.coco(), {"instructblip": 0, "llava": 0}
    assert len(images) > 10
    for image in images:
        for model, text in image["captions"].items():
            found = [mention.object for mention in vocabulary.mentions(text)]
            assert {name: found.count(name) for name in found} == image["mentions"][model]
            everything_else = sorted(set(chair.COCO) - set(image["absent"]))
            judged = chair.hallucinated(vocabulary, text, everything_else, [])
            assert sorted({mention.object for mention in judged.wrong}) == image["wrong"][model]
            wrong[model] += len(judged.wrong)
    assert wrong["llava"] > wrong["instructblip"]


def test_a_truth_that_is_neither():
    with pytest.raises(ValueError, match="the true answer is yes or no, and one is 'maybe'"):
        pope.scores(["yes"], ["maybe"])
    assert pope.scores(["no", "unknown"], ["no", "yes"])["precision"] == 0

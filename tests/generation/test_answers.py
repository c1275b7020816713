"""Constrained writing: one of the answers exactly, greedy at each token, drawn, or the likeliest by beams."""

import dataclasses

import numpy as np
import pytest
from tiny import speaking

from vitvlm.core.config import ConfigError
from vitvlm.generation import Options, Writer, score

ANSWERS = [" cat", " cat face", " dog", " a red heart"]
PROMPTS = ["a picture of", "two"]


def loaded():
    return dataclasses.replace(speaking(), source={"config": {"eos_token_id": 2}})


@pytest.mark.parametrize(
    "options",
    [Options(), Options(temperature=3.0, samples=5), Options(beams=4, samples=2)],
    ids=["1", "drawn", "beams"],
)
def test_what_is_written_is_one_of_the_answers(options):
    for texts in Writer(loaded()).answer(PROMPTS, ANSWERS, options):
        assert len(texts) == options.samples
        for text in texts:
            assert text.text.strip() == ANSWERS[text.answer].strip() and text.finish == "stop"


def test_beams_find_the_likeliest_answer():
    """With as many beams as answers none is lost; the end of each counts."""
    for prompt, (text,) in zip(
        PROMPTS, Writer(loaded()).answer(PROMPTS, ANSWERS, Options(beams=4, length_penalty=0.0))
    ):
        totals = [score(loaded(), [answer], [prompt], end=True)[0].total for answer in ANSWERS]
        assert text.answer == np.argmax(totals) and text.score == pytest.approx(max(totals), abs=1e-3)


def test_a_list_of_answers_for_each_prompt():
    first, second = Writer(loaded()).answer(PROMPTS, [[" dog"], [" hearts", " cats"]])
    assert first[0].text.strip() == "dog" and second[0].text.strip() in ("hearts", "cats")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: Writer(loaded()).answer(["a"], [""]), "an answer is empty"),
        (lambda: Writer(loaded()).answer(["a"], []), "prompt 0 has no answers"),
        (lambda: Writer(loaded()).answer(["a"], ["b"], Options(stop_ids=())), "no token that ends a text"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        given()

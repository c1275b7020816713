"""Captions and answers of our BLIP against `transformers`, greedy and by beams: the same ids after any prompt."""

import pytest
from huggingface import pixels
from test_blip_equals_transformers import IMAGES, PADDED, TEXTS, B, expectation, long
from transformers import BlipForConditionalGeneration, BlipForQuestionAnswering

from vitvlm import pretrained
from vitvlm.core.config import ConfigError
from vitvlm.generation import Options, Writer

PROMPTS = [[], TEXTS[1, :2].tolist(), TEXTS[2, :3].tolist()]


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_theirs(beams):
    """Greedy and beam ids after prompts of other lengths, all in one batch of ours; theirs one by one."""
    folder, *_ = expectation("captioner")
    theirs, loaded = BlipForConditionalGeneration.from_pretrained(folder).eval(), pretrained.load(folder)
    wanted = []
    for i, prompt in enumerate(PROMPTS):  # they drop the last id, and put BOS in place of the first
        out = theirs.generate(
            pixels(IMAGES[i : i + 1]),
            long([[1, *prompt, 1]]),
            max_new_tokens=5,
            num_beams=beams,
            do_sample=False,
            use_cache=False,
        )
        wanted.append(content(out[0, 1 + len(prompt) :]))
    assert loaded.model.stop_ids == (5,)
    options = Options(max_new_tokens=5, beams=beams)
    found = Writer(loaded).write_ids([[29, *prompt] for prompt in PROMPTS], options, inputs={"images": IMAGES})
    assert [list(text.ids) for (text,) in found] == wanted
    assert len(set(map(tuple, wanted))) > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_theirs(beams):
    """Greedy and beam ids of answers to questions of other lengths, all in one batch of ours; theirs one by one."""
    folder, *_ = expectation("vqa")
    theirs, loaded = BlipForQuestionAnswering.from_pretrained(folder).eval(), pretrained.load(folder)
    questions = [TEXTS[i, : PADDED[i].sum()].tolist() for i in range(B)]
    wanted = []
    for i, question in enumerate(questions):
        out = theirs.generate(
            long([question]),
            pixels(IMAGES[i : i + 1]),
            max_new_tokens=5,
            num_beams=beams,
            do_sample=False,
            use_cache=False,
        )
        wanted.append(content(out[0, 1:]))
    options = Options(max_new_tokens=5, beams=beams)
    found = Writer(loaded).write_ids(questions, options, inputs={"images": IMAGES[:, None]})
    assert [list(text.ids) for (text,) in found] == wanted


def content(ids):
    """The ids before the one that ends a text."""
    ids = [int(i) for i in ids]
    ends = [place for place, token in enumerate(ids) if token == 5]
    return ids[: ends[0]] if ends else ids


def test_generation_without_what_it_needs():
    loaded = pretrained.load(expectation("captioner")[0])
    with pytest.raises(ConfigError, match="images: BlipCaptioner writes about an image: give one for each text"):
        Writer(loaded).write_ids([[29]])
    with pytest.raises(ConfigError, match="images: 3 for 1 texts: give one for each"):
        Writer(loaded).write_ids([[29]], inputs={"images": IMAGES})
    loaded = pretrained.load(expectation("vqa")[0])
    with pytest.raises(ConfigError, match="a prompt of 12 tokens; the model has 11 positions"):
        Writer(loaded).write_ids([[7] * 12], inputs={"images": IMAGES[:1]})

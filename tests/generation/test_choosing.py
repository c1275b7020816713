"""Tokens are drawn from what the warpers of `transformers` leave of the logits; the same ones again by the seed."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny import llama
from transformers.generation import logits_process

from vitvlm.core.config import ConfigError
from vitvlm.generation import Options, Writer
from vitvlm.generation.choosing import Choosing, allowed, penalized

V = 200
WARPERS = {
    "temperature": lambda value: logits_process.TemperatureLogitsWarper(value),
    "top_k": lambda value: logits_process.TopKLogitsWarper(value),
    "top_p": lambda value: logits_process.TopPLogitsWarper(value),
    "min_p": lambda value: logits_process.MinPLogitsWarper(value),
}


def logits(rows=3):
    return np.random.default_rng(0).normal(size=(rows, V)).astype(np.float32) * 2


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_k": 1000},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 0.3},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 1.6, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
    ],
    ids=str,
)
def test_what_is_drawn_from(given):
    expected = torch.tensor(logits())
    for name, value in given.items():  # in this order
        expected = WARPERS[name](min(value, V) if name == "top_k" else value)(None, expected)
    found = Choosing.of(Options(**given), jnp.zeros(0, jnp.int32)).warped(jnp.asarray(logits()))
    assert np.array_equal(np.isinf(found), np.isinf(expected.numpy()))
    np.testing.assert_allclose(jax.nn.softmax(found), expected.softmax(-1).numpy(), atol=1e-6)


def test_repetition_penalty_is_theirs_and_leaves_padding_out():
    ids = np.array([[5, 9, 5, 5], [-1, -1, 3, 8]])
    found = penalized(jnp.asarray(logits(2)), jnp.asarray(ids), jnp.float32(1.7))
    for row, text in enumerate(ids):
        theirs = logits_process.RepetitionPenaltyLogitsProcessor(1.7)
        expected = theirs(torch.tensor([[i for i in text if i >= 0]]), torch.tensor(logits(2)[row : row + 1]))
        np.testing.assert_allclose(found[row], expected[0].numpy(), rtol=1e-6)


def test_draws_follow_the_distribution():
    options = Options(temperature=0.8, top_k=4)
    choosing = Choosing.of(options, jnp.zeros(0, jnp.int32))
    row = jnp.asarray(logits(1))
    keys = jax.random.split(jax.random.key(3), 4000)
    drawn = jax.jit(lambda keys: choosing.choose(jnp.repeat(row, len(keys), axis=0), keys))(keys)
    expected = np.asarray(jax.nn.softmax(choosing.warped(row)))[0]
    counts = collections.Counter(np.asarray(drawn).tolist())
    assert set(counts) == set(np.flatnonzero(expected))
    for token, count in counts.items():
        share = expected[token]
        assert abs(count / 4000 - share) < 4 * np.sqrt(share * (1 - share) / 4000)


def test_draws_come_again_by_the_seed_and_differ_between_samples():
    _, loaded = llama()
    prompt = [[3, 4, 5]]
    options = Options(max_new_tokens=12, temperature=2.0, samples=3, seed=1, stop_ids=())
    (first,) = Writer(loaded).write_ids(prompt, options)
    (again,) = Writer(loaded).write_ids(prompt, options)
    assert [text.ids for text in first] == [text.ids for text in again]
    assert len({text.ids for text in first}) == 3
    (other,) = Writer(loaded).write_ids(prompt, Options(max_new_tokens=12, temperature=2.0, seed=2, stop_ids=()))
    assert other[0].ids not in {text.ids for text in first}


def test_only_what_goes_on_an_answer_is_allowed():
    """Answers 1 2 9, 1 3 9 and 1 2 2 9, where 9 ends a text."""
    answers = jnp.asarray([[[1, 2, 9, -1], [1, 3, 9, -1], [1, 2, 2, 9]]])
    begun = 2

    def tokens(*written):
        ids = jnp.asarray([[7, 7, *written, *[-1] * (6 - len(written))]])
        return set(np.flatnonzero(allowed(answers, ids, begun, jnp.int32(begun + len(written)), 10)[0]).tolist())

    assert tokens() == {1}
    assert tokens(1) == {2, 3}
    assert tokens(1, 2) == {2, 9}
    assert tokens(1, 3) == {9}
    assert tokens(1, 2, 2) == {9}
    assert tokens(1, 2, 9) == tokens(1, 2, 2, 9) == tokens(4) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: 0; give a whole number from 1 on"),
        ({"temperature": -1.0}, "temperature: -1.0; give a number from 0"),
        ({"temperature": 1.0, "top_p": 0}, "top_p: 0; give a number above it"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p: 1.5; give a number from 0 to 1"),
        ({"top_k": 5}, "top_k: at temperature 0 nothing is drawn"),
        ({"beams": 2, "temperature": 0.5}, "temperature: 0.5 with beams=2"),
        ({"beams": 2, "samples": 3}, "samples: 3 of 2 beams"),
        ({"samples": 3}, "samples: 3 at temperature 0 are all alike"),
        ({"early_stopping": "always"}, "early_stopping: 'always'"),
        ({"stop": "end"}, "stop: 'end'; give a list of strings"),
        ({"stop": [""]}, "none of them empty"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens: 9 is more than max_new_tokens=8"),
        ({"draft": 4, "temperature": 1.0}, "draft: only greedy text"),
    ],
)
def test_options_that_cannot_be_meant(options, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        Options(**options)

"""Copied tokens change nothing but the number of passes: the same ids and log-probabilities as greedy."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import V, llama, speaking

from vitvlm.generation import Options, Writer
from vitvlm.generation.loop import looked_up


@pytest.mark.parametrize("name", ["llama", "mistral", "learned"])
def test_the_ids_are_those_of_greedy(name):
    loaded = speaking(positions="learned") if name == "learned" else llama(4 if name == "mistral" else None)[1]
    rng, saved = np.random.default_rng(0), 0
    for round in range(12):
        size = [1, 3][round % 2]
        prompts = [np.tile(rng.integers(3, V, 4), 4)[: rng.integers(3, 16)].tolist() for _ in range(size)]
        options = {"max_new_tokens": 24, "log_probs": True}
        if round % 3 == 0:
            options["repetition_penalty"] = 1.3
        if round % 3 == 1:
            options["stop_ids"] = ()
        plain = Writer(loaded).write_ids(prompts, Options(**options))
        copied = Writer(loaded).write_ids(prompts, Options(**options, draft=4))
        for (expected,), (found,) in zip(plain, copied):
            assert (found.ids, found.finish) == (expected.ids, expected.finish)
            np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-4)
            saved += expected.passes - found.passes
            assert found.passes <= expected.passes
    assert saved > 0


def test_up_to_the_last_position_of_a_model():
    loaded = speaking(positions="learned")
    prompt = [[5, 6, 7] * 28]  # 84 of 96
    options = [Options(max_new_tokens=50, stop_ids=(), draft=draft) for draft in (0, 5)]
    ((plain,),), ((copied,),) = (Writer(loaded).write_ids(prompt, each) for each in options)
    assert plain.ids == copied.ids
    assert len(plain.ids) == 12 and plain.finish == copied.finish == "positions"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 9, 1, 2], [3, 9, 1]),
        ([5, 1, 2, 7, 6, 2, 8, 1, 2], [7, 6, 2]),  # the longer match goes before the later one
        ([1, 2, 4, 1, 2, 5, 1, 2], [5, 1, 2]),  # the latest of equal ones
        ([3, 4, 3, 4], [3, 4, 3]),  # what followed is repeated
        ([1, 2, 3], [3, 3, 3]),
    ],
)
def test_what_is_looked_up(text, expected):
    ids = jnp.asarray([[-1, *text, -1, -1, -1]])
    assert looked_up(ids, jnp.int32(len(text) + 1), 3, 3)[0].tolist() == expected

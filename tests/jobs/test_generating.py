"""The prediction function `generate`: what a writer writes after the same prompts, token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.generation import loop, options
from vitvlm.generation.choosing import Choosing, keys_of
from vitvlm.generation.models import language_model
from vitvlm.generation.prompts import padded
from vitvlm.jobs.evaluation import generating, prediction
from vitvlm.tasks import task_for
from vitvlm.training import sharding

SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "vocab_size": 30, "scan": False}
L, NEW = 8, 5


@functools.cache
def made(name):
    model = models.build(name, **SIZES, **({"length": 32} if name == "decoder" else {}))
    tokens = jnp.zeros((1, 3), jnp.int32)
    given = {"decoder_tokens": tokens} if name == "t5" else {}
    variables = model.init(jax.random.key(0), tokens, **given)
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)  # noqa: E731
    return model, jax.tree.map(draw, variables)


def batch():
    """Records of prompts of 1, 3, 6 and 8 tokens; the rest of each row is its answer, but for padding."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 30, (4, L)).astype(np.int32)
    mask, learned = np.ones((4, L), np.int32), np.zeros((4, L), np.int32)
    for row, count in enumerate((1, 3, 6, 8)):
        learned[row, count : count + 2] = 1
        mask[row, count + 2 :] = 0
    return {"text_tokens": tokens * mask, "text_mask": mask, "text_learned": learned, "example_mask": np.ones(4)}


def alone(name, prompt, stop_ids=()):
    """The same text by the loop that `generation.Writer` runs, one prompt at a time."""
    model, variables = made(name)
    given = padded([prompt], L)
    how = Choosing.of(options.Options(), jnp.asarray(stop_ids, jnp.int32)), keys_of(0, [0], 1)
    writer = language_model(model)
    begun = 1 if name == "t5" else L
    draft = loop.begin(writer, variables, given, jnp.arange(1), *how, room=begun + NEW)
    draft = loop.go_on(writer, variables, draft, *how, jnp.int32(begun + NEW))
    return np.asarray(draft.ids)[0, begun:]


@pytest.mark.parametrize("name", ["decoder", "t5"])
def test_it_writes_what_the_loop_writes_of_each_prompt(name):
    model, variables = made(name)
    predict = prediction.Predictor(task_for(model), sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    given = batch()
    if name == "t5":
        given |= {"answer_tokens": given["text_tokens"][:, :2], "answer_mask": given["text_mask"][:, :2]}
    ids = predict("generate", variables, given, max_new_tokens=NEW)["ids"]
    assert ids.shape == (4, NEW) and len(np.unique(ids)) > 3
    prompts = [row[mask > 0] for row, mask in zip(given["text_tokens"], given["text_mask"])]
    if name == "decoder":
        prompts = [row[:count] for row, count in zip(prompts, (1, 3, 6, 8))]
    for row, prompt in zip(ids, prompts):
        np.testing.assert_array_equal(row, alone(name, prompt.tolist()))
    stop = (int(ids[0, 1]),)
    stopped = predict("generate", variables, given, max_new_tokens=NEW, stop_ids=stop)["ids"]
    for before, after in zip(ids, stopped):
        ends = np.flatnonzero(before == stop[0])
        end = ends[0] + 1 if len(ends) else NEW
        np.testing.assert_array_equal(after[:end], before[:end])
        assert (after[end:] == -1).all()


def test_a_model_without_room():
    model, variables = made("decoder")
    with pytest.raises(ConfigError, match="max_new_tokens: 25 after prompts of up to 8; the model has 32 positions"):
        generating.generate(model, variables, batch(), max_new_tokens=25)


def test_only_models_that_write_generate():
    assert generating.functions(models.build("vit", width=8, depth=1, heads=2, mlp_width=8, patch_size=4)) == {}

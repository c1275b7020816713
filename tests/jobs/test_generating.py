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


@functools.cache
def made_vlm():
    """A model whose images are of 2 x 2 patches, and random parameters."""
    image = {"name": "vit", "image_size": 8, "patch_size": 4, **{k: v for k, v in SIZES.items() if k != "vocab_size"}}
    text = {"name": "decoder", "length": 32, **SIZES}
    model = models.build("vlm", image=image, connector={"name": "mlp"}, text=text)
    index = jnp.arange(4)[None]
    shapes = jax.eval_shape(
        functools.partial(model.init, image_index=index), jax.random.key(0), jnp.zeros((1, 1, 8, 8, 3)), index
    )
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


def test_among_images_each_token_is_the_likeliest_after_those_before_it():
    """By one pass over the prompt and all that was written; the second text's image is not there."""
    model, variables = made_vlm()
    predict = prediction.Predictor(task_for(model), sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    rng, first = np.random.default_rng(2), np.array([7, 9])
    tokens, places = rng.integers(1, 30, (2, 12)).astype(np.int32), np.arange(12)
    index = np.where((places >= 1) & (places < 5), places - 1, -1)
    given = {
        "images": rng.normal(size=(2, 1, 8, 8, 3)).astype(np.float32),
        "image_mask": np.array([[1], [0]], np.int32),
        "image_index": np.stack([index, index]).astype(np.int32),
        "text_tokens": tokens,
        "text_mask": np.ones((2, 12), np.int32),
        "text_learned": (places >= first[:, None]).astype(np.int32),
        "example_mask": np.ones(2, np.float32),
    }
    ids = predict("generate", variables, given, max_new_tokens=NEW)["ids"]
    assert len(np.unique(ids)) > 3
    longer = np.pad(tokens, [(0, 0), (0, NEW)])
    mask = np.arange(12 + NEW) < first[:, None] + NEW
    for row, start in enumerate(first):
        longer[row, start : start + NEW] = ids[row]
    images = {name: given[name] for name in ("image_mask", "images")}
    padded_index = np.pad(given["image_index"], [(0, 0), (0, NEW)], constant_values=-1)
    logits = jax.jit(model.apply)(variables, text_tokens=longer, mask=mask, image_index=padded_index, **images).logits
    for row, start in enumerate(first):
        np.testing.assert_array_equal(np.argmax(logits[row, start - 1 : start + NEW - 1], axis=1), ids[row])
    blind = predict("generate", variables, given | {"image_mask": np.zeros((2, 1), np.int32)}, max_new_tokens=NEW)[
        "ids"
    ]
    np.testing.assert_array_equal(blind[1], ids[1])
    assert (blind[0] != ids[0]).any()

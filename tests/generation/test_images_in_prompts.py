"""Texts after prompts with images: as reading all again for each token, whatever the padding and what is missing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.generation import beams, loop
from vitvlm.generation.choosing import Choosing, keys_of
from vitvlm.generation.models import Prompts, language_model
from vitvlm.generation.options import Options

IMAGE = 29
VIT = dict(name="vit", width=8, depth=1, heads=2, mlp_width=12, patch_size=4, image_size=(8, 8), scan=False)
TEXT = dict(name="decoder", width=12, depth=2, heads=2, mlp_width=20, vocab_size=30, length=64, scan=False)
T5 = dict(name="t5", width=12, depth=1, heads=2, mlp_width=20, vocab_size=30, scan=False)
MODELS = {
    "decoder": {},
    "prefix": {"prefix_lm": True, "text": TEXT | dict(pattern=("local", "global"), local=6)},
    "t5": {"text": T5},
}
NEW = 4
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(2, 2, 8, 8, 3)), jnp.float32)
# Two images among words; a word, one image, two words. The second has no second image.
TEXTS = ([3, *[IMAGE] * 4, 5, *[IMAGE] * 4, 7], [8, *[IMAGE] * 4, 9, 2])
THERE = jnp.asarray([[1, 1], [1, 0]])


@functools.cache
def made(name):
    model = models.build("vlm", **{"image": VIT, "connector": {"name": "mlp"}, "text": TEXT} | MODELS[name])
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), IMAGES, jnp.zeros((2, 3), jnp.int32), image_index=jnp.zeros((2, 3), int))
    )
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.5, leaf.dtype), shapes)


def prompts(L=14, there=THERE):
    tokens, index, mask = np.zeros((2, L), np.int32), np.full((2, L), -1), np.zeros((2, L), bool)
    for row, text in enumerate(TEXTS):
        text = np.array(text)
        tokens[row, L - len(text) :], mask[row, L - len(text) :] = text, True
        index[row, L - len(text) :] = np.where(text == IMAGE, np.cumsum(text == IMAGE) - 1, -1)
    inputs = {"images": IMAGES, "image_mask": there, "image_index": jnp.asarray(index)}
    return Prompts(jnp.asarray(tokens), jnp.asarray(mask), inputs=inputs)


def read_again(name, row, there):
    """Greedy tokens of one text without padding, the whole read anew for each."""
    model, variables = made(name)
    text, written = list(TEXTS[row]), []
    for _ in range(NEW):
        tokens = jnp.asarray([text if name == "t5" else text + written])
        index = jnp.where(tokens == IMAGE, jnp.cumsum(tokens == IMAGE, axis=1) - 1, -1)
        index = jnp.where(jnp.arange(tokens.shape[1]) < len(text), index, -1)
        call = {"images": IMAGES[row : row + 1], "image_mask": there[row : row + 1], "image_index": index}
        if name == "t5":
            call["decoder_tokens"] = jnp.asarray([[0, *written]])
        if name == "prefix":
            call["prefix_mask"] = jnp.arange(tokens.shape[1])[None] < len(text)
        written.append(int(jnp.argmax(model.apply(variables, text_tokens=tokens, **call).logits[0, -1])))
    return written


@pytest.mark.parametrize("name", MODELS)
def test_written_as_read_again(name):
    model, variables = made(name)
    writer, choosing, keys = language_model(model), Choosing.of(Options(), ()), keys_of(0, [0, 1], 1)
    for there in (THERE, jnp.asarray([[0, 1], [0, 0]])):
        given = prompts(there=there)
        begun = 1 if name == "t5" else given.tokens.shape[1]
        draft = loop.begin(writer, variables, given, jnp.arange(2), choosing, keys, room=begun + NEW)
        draft = loop.go_on(writer, variables, draft, choosing, keys, jnp.int32(begun + NEW))
        found = draft.ids[:, begun:].tolist()
        expected = [read_again(name, row, there) for row in range(2)]
        assert found == expected, there


def test_one_beam_of_a_search_with_images_is_greedy_and_several_are_no_worse():
    model, variables = made("decoder")
    writer, given = language_model(model), prompts()
    L = given.tokens.shape[1]
    how = dict(room=L + NEW, early_stopping=False, cache=None)
    one, three = (
        beams.search(
            writer,
            variables,
            given,
            Choosing.of(Options(beams=n), ()),
            jnp.int32(L + NEW),
            jnp.float32(0.0),
            beams=n,
            **how,
        )
        for n in (2, 3)
    )
    assert one.finished.shape[:2] == (2, 2)
    assert (three.finished_scores[:, 0] >= one.finished_scores[:, 0] - 1e-5).all()

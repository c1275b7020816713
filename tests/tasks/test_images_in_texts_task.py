"""Texts with images among them: packed as alone, nothing leaks between the texts of a row, and blind in any row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.nn.rope import sections
from vitvlm.tasks import NextToken, next_token, task_for
from vitvlm.training.gradients import make_gradients

VIT = dict(name="vit", width=8, depth=1, heads=2, mlp_width=12, patch_size=2, image_size=(4, 8), scan=False)
TEXT = dict(name="decoder", width=12, depth=2, heads=2, mlp_width=20, vocab_size=30, length=64, scan=False)
IMAGE = 29
KINDS = {
    "linear": {},
    "mlp": {"features": (-2, "tokens")},
    "pixel_shuffle": {"text": TEXT | dict(pattern=("local", "global"), local=5, kv_heads=1)},
    "average_pool": {"own_tokens": 1},
    "none": {"prefix_lm": True},
    "mrope": {"connector": {"name": "mlp"}, "text": TEXT | dict(rope=dict(axes=sections(1, 1, 1)))},
    "learned": {"connector": {"name": "mlp"}, "text": TEXT | dict(positions="learned")},
}
TOKENS = {"pixel_shuffle": 2, "average_pool": 2}  # M; of other kinds 8
# Of each record: what stands in its text, by words and images.
RECORDS = ("wiww", "wwww", "iwiw", "wwiw")
LEARNED = 2  # of each, the words among the last two tokens
RNG = np.random.default_rng(0)
PIXELS = RNG.normal(size=(4, 2, 4, 8, 3)).astype(np.float32)
WORDS = RNG.integers(1, 29, size=(4, 4))


def record(kind, number):
    """Token ids, image index (of its own images), learned and positions of one record."""
    M = TOKENS.get(kind, 8)
    ids, index, positions, image, position = [], [], [], 0, 0
    for word, letter in zip(WORDS[number], RECORDS[number]):
        if letter == "w":
            ids, index, positions = [*ids, word], [*index, -1], [*positions, [position] * 3]
            position += 1
            continue
        ids, index = [*ids, *[IMAGE] * M], [*index, *range(image * M, image * M + M)]
        positions += [[position, position + i // 4, position + i % 4] for i in range(M)]
        position, image = position + (4 if kind == "mrope" else M), image + 1
        if kind == "average_pool":  # a vector of the model's own stands behind each image
            ids, index, positions = [*ids, IMAGE], [*index, -2], [*positions, [position] * 3]
            position += 1
    index = np.array(index)
    positions = np.array(positions) if kind == "mrope" else np.arange(len(ids))[:, None]
    learned = (np.arange(len(ids)) >= len(ids) - LEARNED) & (index == -1)
    return np.array(ids), index, learned, positions


def rows(kind, members, length=48, images=2):
    """A batch with one row for each tuple of records, one behind the other."""
    M = TOKENS.get(kind, 8)
    count = len(members)
    ids, mask, learned, segments = np.zeros((4, count, length), np.int32)
    index, positions = np.full((count, length), -1), np.zeros((count, length, 3), np.int32)
    pixels, there = np.zeros((count, images, 4, 8, 3), np.float32), np.zeros((count, images), np.int32)
    for row, numbers in enumerate(members):
        start, image = 0, 0
        for segment, number in enumerate(numbers, 1):
            own, own_index, own_learned, own_positions = record(kind, number)
            here = slice(start, start + len(own))
            ids[row, here], mask[row, here], segments[row, here] = own, 1, segment
            learned[row, here], positions[row, here] = own_learned, own_positions
            own_index = np.where(own_index >= 0, own_index + image * M, own_index)
            index[row, here] = np.where(own_index == -2, images * M, own_index)
            for at in range(RECORDS[number].count("i")):
                pixels[row, image], there[row, image], image = PIXELS[number, at], 1, image + 1
            start += len(own)
    batch = dict(text_tokens=ids, text_mask=mask, text_learned=learned, image_index=index, images=pixels)
    batch |= dict(image_mask=there, example_mask=np.ones(count, np.float32), text_segments=segments)
    batch["text_positions"] = positions if kind == "mrope" else positions.max(axis=-1)
    if kind != "mrope" and max(map(len, members)) == 1:
        del batch["text_segments"], batch["text_positions"]
    return {name: jnp.asarray(value) for name, value in batch.items()}


@functools.cache
def made(kind):
    fields = {"image": VIT, "connector": {"name": kind}, "text": TEXT, "image_token": IMAGE} | KINDS[kind]
    if kind == "mrope":  # whose positions are of a grid of images
        fields["text"] = {**fields["text"], "head_dim": 6}
    task = task_for(models.build("vlm", **fields))
    assert isinstance(task, NextToken)
    shapes = jax.eval_shape(task.init, jax.random.key(0), rows(kind, [(0,)]))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype), shapes)
    return task, variables, jax.jit(make_gradients(task.loss, whole_batch=task.whole_batch))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_as_alone(kind):
    """The same loss and gradients, of encoder, connector and language model, within 1e-5."""
    _, variables, gradients = made(kind)
    alone = gradients(variables["params"], {}, rows(kind, [(0,), (1,), (2,), (3,)]), jax.random.key(1))
    packed = gradients(variables["params"], {}, rows(kind, [(0, 1), (2, 3)], images=3), jax.random.key(1))
    np.testing.assert_allclose(alone[1]["loss"], packed[1]["loss"], rtol=1e-5)
    alone, packed = flatten(alone[0]), flatten(packed[0])
    scale = max(np.abs(leaf).max() for leaf in alone.values())
    for path, leaf in alone.items():
        np.testing.assert_allclose(packed[path], leaf, atol=1e-5 * max(scale, 1), err_msg=path)
    assert np.abs(alone["connector/layers_0/kernel"]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_another_record_of_the_row_changes_a_logit(kind):
    """Not its words, images, number of images, their order or their absence: the difference is exactly 0."""
    task, variables, _ = made(kind)
    batch = rows(kind, [(0, 2)], images=3)
    second = np.asarray(batch["text_segments"][0] == 2)

    @jax.jit
    def logits(batch):
        call = task._continuing(batch) | task._images(batch)
        return task.model.apply(variables, text_tokens=batch["text_tokens"], mask=batch["text_mask"], **call).logits[0]

    others = jnp.asarray(~second).reshape(1, -1, *[1] * (batch["text_positions"].ndim - 2))
    changes = {
        "words": {"text_tokens": jnp.where(second, batch["text_tokens"], (batch["text_tokens"] + 7) % 29)},
        "images": {"images": batch["images"].at[:, 0].multiply(-30.0)},
        "no image": {"image_mask": batch["image_mask"].at[:, 0].set(0)},
        "what is learned": {"text_learned": jnp.where(second, batch["text_learned"], 1 - batch["text_learned"])},
        "rows": {"image_index": jnp.where(second | (batch["image_index"] < 0), batch["image_index"], 0)},
        "positions": {"text_positions": jnp.where(others, 2, 1) * batch["text_positions"]},
    }
    before = logits(batch)
    first = ~second & np.asarray(batch["text_mask"][0] > 0)
    for what, change in changes.items():
        after = logits(batch | change)
        assert np.array_equal(after[second], before[second]), what
        if what != "what is learned":
            assert np.abs(after - before)[first].max() > 1e-3, what
    # The other way round: nothing of the second changes the first.
    after = logits(batch | {"images": batch["images"].at[:, 1:].multiply(-30.0)})
    assert np.array_equal(after[first], before[first])
    assert np.abs(after - before)[second].max() > 1e-3


@pytest.mark.parametrize("kind", ["mlp", "learned", "none"])
def test_a_row_whose_images_are_left_out_is_its_texts_alone(kind):
    """Positions too, in the middle of a row."""
    task, variables, _ = made(kind)
    batch = rows(kind, [(0, 2), (3, 1)], images=3)
    blind = batch | {"image_mask": jnp.zeros_like(batch["image_mask"])}
    ids, mask, learned, segments = np.zeros((4, 2, 20), np.int32)
    positions = np.zeros((2, 20), np.int32)
    for row, members in enumerate([(0, 2), (3, 1)]):
        start = 0
        for segment, number in enumerate(members, 1):
            own, index, own_learned, _ = record(kind, number)
            words = own[index == -1]
            here = slice(start, start + len(words))
            ids[row, here], mask[row, here], segments[row, here] = words, 1, segment
            learned[row, here], positions[row, here] = own_learned[index == -1], np.arange(len(words))
            start += len(words)
    texts = dict(text_tokens=ids, text_mask=mask, text_learned=learned, text_segments=segments)
    texts |= dict(text_positions=positions, example_mask=np.ones(2, np.float32))
    found, expected = (task.predict_fns["log_likelihood"](variables, each) for each in (blind, texts))
    np.testing.assert_array_equal(found["learned_tokens"], expected["learned_tokens"])
    np.testing.assert_allclose(found["log_likelihood"], expected["log_likelihood"], rtol=1e-5)
    seen = task.predict_fns["log_likelihood"](variables, batch)
    assert np.abs(seen["log_likelihood"] - found["log_likelihood"]).max() > 1e-3


def test_prompts_are_what_stands_before_the_first_learned_token_of_each_text():
    learned = jnp.asarray([[0, 0, 1, 0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0, 1, 1, 0]])
    segments = jnp.asarray([[1, 1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 2, 2, 2, 2, 2, 2, 0]])
    assert next_token.prompts(learned, segments).astype(int).tolist() == [
        [1, 1, 0, 0, 0, 1, 1, 0, 1],
        [0, 0, 1, 1, 1, 1, 0, 0, 1],
    ]
    assert next_token.prompts(learned).astype(int).tolist() == [[1, 1] + [0] * 7, [0] * 9]


def test_one_image_to_a_text_and_a_batch_without_any():
    task, variables, _ = made("mlp")
    batch = rows("mlp", [(0,), (3,)], images=1)
    one = {name: value for name, value in batch.items() if name not in ("images", "image_mask", "image_index")}
    found = task.predict_fns["log_likelihood"](variables, one | {"image": batch["images"][:, 0]})
    expected = task.predict_fns["log_likelihood"](variables, batch)
    np.testing.assert_allclose(found["log_likelihood"], expected["log_likelihood"], rtol=1e-6)
    texts = {name: value for name, value in rows("mlp", [(1,)]).items() if not name.startswith("image")}
    assert np.isfinite(task.predict_fns["log_likelihood"](variables, texts)["log_likelihood"]).all()
    with pytest.raises(ConfigError, match=r"config\.data: VLM sees images, and there are none"):
        task.init(jax.random.key(0), texts)

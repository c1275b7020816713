"""The task of CoCa: both losses, and that micro-batches and blocks take the same step as the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contrast import IMAGE, RNG, SIZES, TEXT, a_batch, a_model

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.objectives import contrastive
from vitvlm.tasks import TASKS, CoCa
from vitvlm.training.grad_cache import cached_gradients
from vitvlm.training.gradients import make_gradients

DECODER = {"decoder_depth": 1, "decoder_heads": 2, "queries": 4, "pool_heads": 2}


def a_coca(**fields):
    text = TEXT | {"pool": "cls", "norm_pooled": True}
    return models.build("coca", image=IMAGE, text=text, embed_dim=10, **DECODER, **fields)


def captioned(size):
    """Texts of all lengths from none at all, and padding examples among the others."""
    batch = a_batch(size)
    lengths = jnp.arange(size) % 8
    return batch | {
        "text_mask": (jnp.arange(7) < lengths[:, None]).astype(jnp.int32),
        "example_mask": jnp.ones(size).at[jnp.array([1, size - 1])].set(0),
    }


def drawn(task):
    """Random variables, without compiling an initialisation."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(task.init, RNG, captioned(8))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, leaf.dtype), shapes)


@pytest.fixture(scope="module")
def task():
    task = CoCa(a_coca())
    return task, drawn(task)


@pytest.fixture(scope="module")
def dense(task):
    """Gradients and metrics of the whole batch."""
    task, variables = task
    return whole(task)(variables["params"], {}, captioned(8), RNG)


@functools.cache
def whole(task):
    return jax.jit(make_gradients(task.loss))


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_the_loss_is_the_weighted_sum(task, dense):
    """Of the contrastive task's and of the mean over tokens, here in NumPy."""
    task, variables = task
    batch, (_, metrics, _) = captioned(8), dense
    output = jax.jit(task.model.apply)(variables, batch["image"], batch["text_tokens"], batch["text_mask"])
    contrast = contrastive.softmax(output.image_embedding, output.text_embedding, output.scale, batch["example_mask"])
    logits = np.asarray(output.logits, float)
    log_p = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    losses = [
        -log_p[b, t - 1, batch["text_tokens"][b, t]]
        for b in range(8)
        for t in range(1, 7)
        if batch["example_mask"][b] and batch["text_mask"][b, t]
    ]
    assert len(losses) == 1 + 2 + 3 + 4 + 5
    np.testing.assert_allclose(metrics["contrastive_loss"], contrast, rtol=1e-5)
    np.testing.assert_allclose(metrics["caption_loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], contrast + 2 * np.mean(losses), rtol=1e-5)
    weighed = CoCa(task.model, contrast_weight=0.0, caption_weight=0.5)
    weighed_loss = jax.jit(lambda v: weighed.loss(v, batch, RNG, True)[0])(variables)
    np.testing.assert_allclose(weighed_loss, np.mean(losses) / 2, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_cached_gradients_equal_the_whole_batchs(task, dense, accumulate):
    """Though micro-batches have other numbers of tokens."""
    task, variables = task
    cached = cached_gradients(*task.pairwise, accumulate=accumulate)
    close(jax.jit(cached)(variables["params"], {}, captioned(8), RNG), dense)


def test_blocks_of_logits_change_nothing(task, dense):
    task, variables = task
    blocks = make_gradients(CoCa(task.model, block_size=3).loss)
    close(jax.jit(blocks)(variables["params"], {}, captioned(8), RNG), dense)


def test_padding_and_empty_captions(task, dense):
    """A batch of empty captions has no caption's loss, and every gradient is finite."""
    task, variables = task
    batch = captioned(8)
    gradients, metrics, _ = whole(task)(variables["params"], {}, batch | {"text_mask": 0 * batch["text_mask"]}, RNG)
    assert metrics["caption_loss"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    other = batch | {"image": batch["image"].at[1].set(9.0), "text_tokens": batch["text_tokens"].at[1].set(5)}
    close(whole(task)(variables["params"], {}, other, RNG), dense)


def test_a_model_without_decoder_or_texts():
    with pytest.raises(ConfigError, match="task coca: a TwoTowers has no decoder: take model coca"):
        TASKS.build("coca", {}, "config.task", model=a_model())
    with pytest.raises(ConfigError, match="task coca: a ViT has no text tower"):
        vit = models.build("vit", patch_size=4, image_size=8, **SIZES)
        TASKS.build("coca", {}, "config.task", model=vit)
    with pytest.raises(ConfigError, match="caption_weight"):
        TASKS.build("coca", {"captoin_weight": 1.0}, "config.task", model=a_coca())


def test_a_step_holds_no_logits(task):
    """Its texts have 7 tokens; [B, L, V] would be 8, 7 or 6, and the vocabulary."""
    task, variables = task
    program = whole(task).lower(variables["params"], {}, captioned(8), RNG).compile().as_text()
    vocabulary = task.model.text.vocab_size
    assert f"[8,6,{vocabulary}]" in program  # the chunk of the loss: one, at this size
    assert f"[8,7,{vocabulary}]" not in program

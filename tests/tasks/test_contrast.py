"""The contrastive task: its losses against NumPy, padding, the bound of the scale, and what it predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.tasks import TASKS, Contrast
from vitvlm.tasks.contrast import capped

SIZES = dict(width=16, depth=1, heads=2, mlp_width=24, scan=False)
IMAGE = dict(name="vit", patch_size=4, image_size=(8, 12), **SIZES)
TEXT = dict(name="text", vocab_size=30, length=7, eot_id=2, **SIZES)
RNG = jax.random.key(3)


def a_model(**fields):
    return models.build("two_towers", image=IMAGE, text=TEXT, embed_dim=10, **fields)


def a_batch(size=5):
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(size, 8, 12, 3)), jnp.float32),
        "text_tokens": jnp.asarray(rng.integers(3, 30, (size, 7)), jnp.int32).at[:, 5].set(2),
        "text_mask": jnp.ones((size, 7), jnp.int32).at[:, 6].set(0),
        "label": jnp.zeros(size, jnp.int32),
        "example_mask": jnp.ones(size).at[-1].set(0),
        "index": jnp.arange(size),
    }


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def task(request):
    model = a_model() if request.param == "softmax" else a_model(scale_init=10.0, bias_init=-10.0)
    task = Contrast(model, loss_kind=request.param)
    return task, task.init(RNG, a_batch())


def log_softmax(x, axis):
    return x - np.log(np.exp(x - x.max()).sum(axis=axis, keepdims=True)) - x.max()


def test_the_loss_is_the_papers(task):
    task, variables = task
    batch = a_batch()
    image = np.asarray(task.predict_fns["image_embedding"](variables, batch)["embedding"], np.float64)[:4]
    text = np.asarray(task.predict_fns["text_embedding"](variables, batch)["embedding"], np.float64)[:4]
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=1e-5)
    loss, metrics, updated = task.loss(variables, batch, RNG, True)
    if task.loss_kind == "softmax":
        logits = image @ text.T / 0.07
        rows, columns = (np.diag(log_softmax(logits, axis)) for axis in (1, 0))
        expected = -(rows.mean() + columns.mean()) / 2
    else:
        signs = 2 * np.eye(4) - 1
        expected = np.log1p(np.exp(-signs * (10 * image @ text.T - 10))).sum() / 4
    assert float(loss) == pytest.approx(expected, rel=1e-4) and not updated
    similar = image @ text.T
    assert float(metrics["image_to_text_accuracy"]) == np.mean(similar.argmax(axis=1) == np.arange(4))
    assert float(metrics["text_to_image_accuracy"]) == np.mean(similar.argmax(axis=0) == np.arange(4))


def test_padding_weighs_nothing(task):
    task, variables = task
    batch = a_batch()
    other = batch | {"image": batch["image"].at[-1].set(50.0), "text_tokens": batch["text_tokens"].at[-1].set(4)}
    gradient = jax.jit(jax.grad(lambda params, batch: task.loss({"params": params}, batch, RNG, True)[0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        gradient(variables["params"], batch),
        gradient(variables["params"], other),
    )


def test_both_towers_and_the_scale_learn(task):
    task, variables = task
    gradient = jax.grad(lambda params: task.loss({"params": params}, a_batch(), RNG, True)[0])(variables["params"])
    sizes = jax.tree.map(lambda leaf: float(jnp.abs(leaf).max()), gradient)
    assert min(sizes["image"]["patches"]["kernel"], sizes["text"]["norm"]["scale"], sizes["log_scale"]) > 0


def test_the_scale_is_bounded_and_can_come_down():
    value, gradient = jax.value_and_grad(lambda x: 3 * capped(x, 100.0))(120.0)
    assert value == 300 and gradient == 3  # descent lowers it
    assert jax.grad(lambda x: -capped(x, 100.0))(120.0) == 0 and jax.grad(lambda x: -capped(x, 100.0))(90.0) == -1
    model = a_model(scale_init=150.0)
    task = Contrast(model)
    variables = task.init(RNG, a_batch())
    assert float(task.loss(variables, a_batch(), RNG, True)[1]["scale"]) == pytest.approx(100)
    assert float(Contrast(model, max_scale=None).loss(variables, a_batch(), RNG, True)[1]["scale"]) == pytest.approx(
        150
    )


def test_features_are_the_image_towers(task):
    task, variables = task
    features = task.predict_fns["features"](variables, a_batch())["features"]
    alone = models.build("vit", **{name: value for name, value in IMAGE.items() if name != "name"})
    expected = alone.apply({"params": variables["params"]["image"]}, a_batch()["image"]).pooled
    np.testing.assert_allclose(features, expected, atol=1e-6)
    assert "block_0_mean" in task.predict_fns


@pytest.mark.parametrize(
    ("fields", "model", "message"),
    [
        ({"loss_kind": "hinge"}, {}, "neither"),
        ({"loss_kind": "sigmoid"}, {}, r"model\.bias_init: the sigmoid loss needs a bias"),
        ({"loss_kind": "sigmoid", "label_smoothing": 0.1}, {"bias_init": -10.0}, "has none; leave it out"),
    ],
)
def test_what_cannot_be_meant(fields, model, message):
    with pytest.raises(ConfigError, match=message):
        TASKS.build("contrast", fields, "config.task", model=a_model(**model))


def test_a_model_or_a_batch_without_texts():
    with pytest.raises(ConfigError, match="has no text tower: take model two_towers"):
        Contrast(models.build("vit", **{name: value for name, value in IMAGE.items() if name != "name"}))
    batch = {name: value for name, value in a_batch().items() if not name.startswith("text")}
    with pytest.raises(ConfigError, match="add tokenize"):
        Contrast(a_model()).init(RNG, batch)

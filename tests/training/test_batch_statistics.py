"""A model with batch statistics through the one training step: micro-batches, averages, and the state that is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_training import make_step

from vitvlm import models
from vitvlm.core.paths import flatten
from vitvlm.tasks import Classify
from vitvlm.training.state import TrainState

BATCH = 6
SCHEDULE = optax.constant_schedule(0.1)
TX = optax.sgd(SCHEDULE)


@pytest.fixture(scope="module")
def task():
    return Classify(models.build("resnet", widths=(8,), depths=(1,), layer="basic", stem_width=4, num_classes=3))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(BATCH, 12, 8, 3)).astype(np.float32),
        "label": rng.integers(3, size=BATCH).astype(np.int32),
        "example_mask": np.ones(BATCH, np.float32),
    }


@pytest.fixture(scope="module")
def variables(task, batch):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def gradients(task):
    """`(params, collections, batch) -> (gradients, updated collections)`, of a whole batch, compiled."""

    def loss(params, collections, batch):
        value, _, updated = task.loss({"params": params, **collections}, batch, jax.random.key(0), True)
        return value, updated

    return jax.jit(jax.grad(loss, has_aux=True))


def close(found, wanted):
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)


def run(task, variables, batch, **options):
    state = TrainState.create(variables, TX, jax.random.key(1), ema=True)
    return jax.jit(make_step(task.loss, TX, schedule=SCHEDULE, ema_decay=0.75, **options))(state, batch)


@pytest.fixture(scope="module")
def stepped(task, variables, batch):
    """The state and metrics after one step on the whole batch."""
    return run(task, variables, batch)


def test_a_step_descends_and_keeps_the_statistics_of_its_batch(stepped, variables, batch, gradients):
    params, statistics = variables["params"], {"batch_stats": variables["batch_stats"]}
    state, metrics = stepped
    expected, updated = gradients(params, statistics, batch)
    close(state.params, jax.tree.map(lambda leaf, gradient: leaf - 0.1 * gradient, params, expected))
    close(state.collections, updated)
    images = batch["image"]
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)))
    kernel = np.asarray(params["stem"]["conv"]["kernel"])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(1, 2))[:, ::2, ::2]
    stem = np.einsum("BhwCpq,pqCD->BhwD", windows, kernel)
    found = state.collections["batch_stats"]["stem"]["norm"]
    before = statistics["batch_stats"]["stem"]["norm"]
    np.testing.assert_allclose(found["mean"], 0.9 * before["mean"] + 0.1 * stem.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(found["var"], 0.9 * before["var"] + 0.1 * stem.var((0, 1, 2), ddof=1), rtol=1e-4)
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("unroll", [False, True])
def test_micro_batches_update_the_statistics_in_turn(task, variables, batch, gradients, unroll):
    params, statistics = variables["params"], {"batch_stats": variables["batch_stats"]}
    state, _ = run(task, variables, batch, accumulate=2, unroll=unroll)
    parts = [{name: value[part::2] for name, value in batch.items()} for part in range(2)]
    first, statistics = gradients(params, statistics, parts[0])
    second, statistics = gradients(params, statistics, parts[1])
    close(state.collections, statistics)
    close(state.params, jax.tree.map(lambda leaf, a, b: leaf - 0.1 * (a + b) / 2, params, first, second))


def test_the_average_is_of_parameters_and_is_evaluated_with_the_running_statistics(task, stepped, variables, batch):
    state, _ = stepped
    close(state.ema, jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, variables["params"], state.params))
    averaged = state.variables(ema=True)
    assert set(averaged) == {"params", "batch_stats"}
    close(averaged["batch_stats"], state.collections["batch_stats"])
    logits = jax.jit(task.predict_fns["logits"])
    assert np.abs(logits(averaged, batch)["logits"] - logits(state.variables(), batch)["logits"]).max() > 0


def test_evaluation_sees_each_example_alone(task, variables, batch):
    """So padding cannot show: the statistics are those of training."""
    logits = jax.jit(task.predict_fns["logits"])
    whole = logits(variables, batch)["logits"]
    padded = batch | {"image": batch["image"].copy()}
    padded["image"][3:] = 100.0
    np.testing.assert_allclose(logits(variables, padded)["logits"][:3], whole[:3], rtol=1e-5)

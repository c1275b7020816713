"""The training step: accumulation, averages, metrics and what must not move."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_training as toy

from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.training import freezing, sharding, step
from vitvlm.training.gradients import make_gradients
from vitvlm.training.state import TrainState

TX = optax.sgd(0.1, momentum=0.9)
SCHEDULE = optax.constant_schedule(0.1)


def quiet_loss(variables, batch, rng, train):
    """The toy's loss without noise, so that the random numbers of the micro-batches do not matter."""
    value, metrics, _ = toy.loss(variables, batch, rng, train=False)
    return value, metrics, {}


def fresh(tx=TX, ema=True) -> TrainState:
    return TrainState.create(toy.variables(), tx, jax.random.key(1), ema=ema)


def _loss_of(params, state, batch):
    value, metrics, _ = quiet_loss({**state.variables(), "params": params}, batch, None, True)
    return value, metrics["accuracy"]


def close(found, wanted, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, wanted)


@pytest.mark.parametrize(("parts", "unroll"), [(2, False), (12, False), (2, True), (12, True)])
def test_accumulation_equals_the_whole_batch(parts, unroll):
    batch = toy.batch_of(3, 12)
    batch["example_mask"][::parts] = 0  # the first micro-batch holds no example at all
    whole, whole_metrics = jax.jit(toy.make_step(quiet_loss, TX, schedule=SCHEDULE))(fresh(), batch)
    split = toy.make_step(quiet_loss, TX, schedule=SCHEDULE, accumulate=parts, unroll=unroll)
    found, metrics = jax.jit(split)(fresh(), batch)
    close(found.params, whole.params)
    close(metrics, whole_metrics)


def test_a_batch_without_an_example_changes_nothing_but_the_step():
    tx = optax.adamw(0.1, weight_decay=0.5)
    make = functools.partial(step.make_train_step, make_gradients(toy.loss), tx, schedule=SCHEDULE, ema_decay=0.5)
    guarded, plain = jax.jit(make(pass_over_empty=True)), jax.jit(make())
    begun, _ = plain(fresh(tx), toy.batch_of(1))
    empty = toy.batch_of(2) | {"example_mask": np.zeros(toy.BATCH, np.float32)}
    after, metrics = guarded(begun, empty)
    assert float(metrics["examples"]) == 0 and int(after.step) == 2
    jax.tree.map(np.testing.assert_array_equal, _plain(after.replace(step=begun.step)), _plain(begun))
    moved, _ = plain(begun, empty)
    assert np.abs(moved.params["head"]["kernel"] - begun.params["head"]["kernel"]).max() > 1e-3, "decay and momentum"
    close(_plain(guarded(begun, toy.batch_of(3))[0]), _plain(plain(begun, toy.batch_of(3))[0]), 0)


def _plain(state):
    return state.replace(rng=jax.random.key_data(state.rng))


def test_each_step_draws_one_of_several_losses():
    def scaled(factor):
        def loss(variables, batch, rng, train):
            value, metrics, updated = quiet_loss(variables, batch, rng, train)
            return factor * value, metrics, updated

        return loss

    batch, factors = toy.batch_of(3, 12), (1.0, 2.0, 3.0)
    plain = float(quiet_loss(fresh().variables(), batch, None, True)[0])
    run = jax.jit(toy.make_step([scaled(factor) for factor in factors], TX, schedule=SCHEDULE))
    found = [run(fresh().replace(step=jnp.int32(number)), batch) for number in range(20)]
    drawn = [float(metrics["loss"]) / plain for _, metrics in found]
    assert {round(value) for value in drawn} == set(factors)
    np.testing.assert_allclose(drawn, np.round(drawn), rtol=1e-5)
    for factor in factors:  # and the gradient is that of the loss that was drawn
        state, _ = found[[round(value) for value in drawn].index(factor)]
        alone, _ = jax.jit(toy.make_step(scaled(factor), TX, schedule=SCHEDULE))(fresh(), batch)
        close(state.params, alone.params)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_constants_are_read_and_stay_out_of_the_state(accumulate):
    def loss(variables, batch, rng, train):
        value, metrics, _ = quiet_loss(variables, batch, rng, train)
        return value * variables["teacher"]["factor"], metrics, {}

    batch, constants = toy.batch_of(3, 12), {"teacher": {"factor": jnp.float32(2.0)}}
    taught = jax.jit(toy.make_step(loss, TX, schedule=SCHEDULE, accumulate=accumulate))
    plain = jax.jit(toy.make_step(quiet_loss, TX, schedule=SCHEDULE, accumulate=accumulate))
    state, metrics = taught(fresh(), batch, constants)
    expected, plain_metrics = plain(fresh(), batch)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    np.testing.assert_allclose(metrics["grad_norm"], 2 * plain_metrics["grad_norm"], rtol=1e-5)


@pytest.mark.parametrize("unroll", [False, True])
def test_unrolled_micro_batches_are_no_loop(unroll):
    split = toy.make_step(quiet_loss, TX, schedule=SCHEDULE, accumulate=2, unroll=unroll)
    text = jax.jit(split).lower(fresh(), toy.batch_of(3, 12)).compile().as_text()
    assert (" while(" in text) is not unroll


def test_micro_batch_holds_every_nth_example():
    seen = []

    def spy(variables, batch, rng, train):
        jax.debug.callback(lambda rows: seen.append(rows.tolist()), batch["index"], ordered=True)
        return quiet_loss(variables, batch, rng, train)

    batch = toy.batch_of(0, 6) | {"index": np.arange(6)}
    jax.jit(toy.make_step(spy, TX, schedule=SCHEDULE, accumulate=3))(fresh(), batch)
    jax.effects_barrier()
    assert seen == [[0, 3], [1, 4], [2, 5]]


def test_micro_batches_draw_different_random_numbers():
    def noise(variables, batch, rng, train):
        value, metrics, updated = quiet_loss(variables, batch, rng, train)
        return value, metrics | {"square": jax.random.normal(rng) ** 2, "noise": jax.random.normal(rng)}, updated

    batch = toy.batch_of(0, 6) | {"example_mask": np.ones(6, np.float32)}
    _, metrics = jax.jit(toy.make_step(noise, TX, schedule=SCHEDULE, accumulate=3))(fresh(), batch)
    of_step = jax.random.fold_in(jax.random.key(1), 0)
    drawn = [jax.random.normal(jax.random.fold_in(of_step, part)) for part in range(3)]
    np.testing.assert_allclose(metrics["noise"], np.mean(drawn), rtol=1e-5)


def test_steps_draw_different_random_numbers_and_the_key_stays():
    def noise(variables, batch, rng, train):
        value, _, updated = quiet_loss(variables, batch, rng, train)
        return value, {"noise": jax.random.normal(rng)}, updated

    train_step = jax.jit(toy.make_step(noise, TX, schedule=SCHEDULE))
    state, first = train_step(fresh(), toy.batch_of(0))
    state, second = train_step(state, toy.batch_of(0))
    assert first["noise"] != second["noise"]
    assert state.rng == jax.random.key(1) and state.step == 2


def test_statistics_see_the_micro_batches_in_turn():
    batch = toy.batch_of(0, 4)

    def tanh_mean(rows):
        params = toy.variables()["params"]["hidden"]
        hidden = jnp.tanh(batch["image"][rows] @ params["kernel"] + params["bias"])
        mask = batch["example_mask"][rows]
        return (hidden * mask[:, None]).sum(axis=0) / mask.sum()

    def loss(variables, batch, rng, train):
        updated = toy.loss(variables, batch, rng, train=False)[2]
        return *quiet_loss(variables, batch, rng, train)[:2], updated

    state, _ = jax.jit(toy.make_step(loss, TX, schedule=SCHEDULE, accumulate=2))(fresh(), batch)
    expected = 0.9 * (0.1 * tanh_mean(slice(0, None, 2))) + 0.1 * tanh_mean(slice(1, None, 2))
    np.testing.assert_allclose(state.collections["statistics"]["mean"], expected, rtol=1e-5, atol=1e-7)


def test_average_equals_numpy():
    train_step = jax.jit(toy.make_step(toy.loss, TX, schedule=SCHEDULE, ema_decay=0.75))
    state = fresh()
    expected = np.asarray(state.params["head"]["kernel"])
    for number in range(4):
        state, _ = train_step(state, toy.batch_of(number))
        expected = 0.75 * expected + 0.25 * np.asarray(state.params["head"]["kernel"])
    np.testing.assert_allclose(state.ema["head"]["kernel"], expected, rtol=1e-6)
    np.testing.assert_array_equal(state.variables(ema=True)["params"]["head"]["kernel"], state.ema["head"]["kernel"])
    assert not np.allclose(expected, state.params["head"]["kernel"])


def test_average_of_bfloat16_parameters_is_float32():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), toy.variables())
    state = TrainState.create(half, TX, jax.random.key(0), ema=True)
    train_step = jax.jit(toy.make_step(quiet_loss, TX, schedule=SCHEDULE, ema_decay=0.99, accumulate=2))
    state, _ = train_step(state, toy.batch_of(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.ema)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables(ema=True))} == {jnp.dtype(jnp.bfloat16)}


def test_metrics_are_those_of_the_update():
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    tx = optax.sgd(schedule)
    train_step = jax.jit(toy.make_step(quiet_loss, tx, schedule=schedule))
    state, _ = train_step(fresh(tx), toy.batch_of(0))
    batch = toy.batch_of(1)
    after, metrics = train_step(state, batch)
    (loss, accuracy), grads = jax.jit(jax.value_and_grad(lambda params: _loss_of(params, state, batch), has_aux=True))(
        state.params
    )

    def norm(tree):
        return np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))

    wanted = {
        "learning_rate": 0.1,
        "grad_norm": norm(grads),
        "update_norm": 0.1 * norm(grads),
        "param_norm": norm(after.params),
        "loss": loss,
        "accuracy": accuracy,
    }
    assert set(metrics) == set(wanted)
    close(metrics, wanted, 1e-5)


def test_what_is_frozen_stays_and_has_no_gradient():
    variables = toy.variables()
    trainable = {"hidden": {"kernel": False, "bias": False}, "head": {"kernel": True}}
    params, frozen = freezing.split(variables["params"], trainable)
    assert params.keys() == {"head"} and frozen.keys() == {"hidden"}
    tx = optax.adam(0.1)
    state = TrainState.create({**variables, "params": params}, tx, jax.random.key(1), ema=True, frozen=frozen)
    assert {path for path in flatten((state.opt_state, state.ema)) if "hidden" in path} == set()
    whole, _ = jax.jit(toy.make_step(quiet_loss, tx, schedule=SCHEDULE, ema_decay=0.5))(fresh(tx), toy.batch_of(0))
    after, metrics = jax.jit(toy.make_step(quiet_loss, tx, schedule=SCHEDULE, ema_decay=0.5))(state, toy.batch_of(0))
    close(after.params["head"], whole.params["head"])
    close(after.ema["head"], whole.ema["head"])
    jax.tree.map(np.testing.assert_array_equal, after.frozen, frozen)
    assert jax.tree.structure(after.variables()) == jax.tree.structure(whole.variables())
    jax.tree.map(np.testing.assert_array_equal, after.variables(ema=True)["params"]["hidden"], frozen["hidden"])
    moved = np.linalg.norm(np.asarray(after.params["head"]["kernel"] - params["head"]["kernel"]))
    np.testing.assert_allclose(metrics["update_norm"], moved, rtol=1e-5)
    np.testing.assert_allclose(metrics["param_norm"], np.linalg.norm(after.params["head"]["kernel"]), rtol=1e-5)


def test_compiled_step_donates_its_state():
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1})
    _, places = toy.target_on(mesh)
    train_step = step.jit_train_step(
        toy.make_step(toy.loss, toy.TX, schedule=SCHEDULE, ema_decay=0.9), places, sharding.batch_sharding(mesh)
    )
    state = jax.jit(toy.init, out_shardings=places)()
    after, _ = train_step(state, toy.batch_of(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema)))
    assert int(after.step) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate": 0}, "config.accumulate: 0; it counts micro-batches"),
        ({"ema_decay": 1.0}, "config.ema_decay: 1.0; it must lie in"),
        ({"unroll": True}, "config.unroll: there is one micro-batch only"),
        ({"accumulate": 3}, "config.accumulate: a batch of 8 does not divide into 3 micro-batches"),
    ],
)
def test_bad_arguments_say_what_to_do(arguments, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(toy.make_step(quiet_loss, TX, schedule=SCHEDULE, **arguments), fresh(), toy.batch_of(0))


def test_averages_that_are_not_there_are_an_error():
    with pytest.raises(ValueError, match="no averaged parameters"):
        fresh(ema=False).variables(ema=True)

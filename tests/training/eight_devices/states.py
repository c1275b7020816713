"""Whole train states over eight devices: what lies where, and steps that equal one device's (see test_devices.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm.core.config import ConfigError
from vitvlm.core.durations import Clock
from vitvlm.core.paths import flatten
from vitvlm.nn.roles import Role
from vitvlm.training import optimizer, sharding
from vitvlm.training.gradients import make_gradients
from vitvlm.training.state import TrainState
from vitvlm.training.step import jit_train_step, make_train_step

DEPTH, WIDTH, HIDDEN = 2, 16, 32
FULL = {"data": 2, "fsdp": 2, "tensor": 2}


def make_params():
    """Scanned MLP blocks and a head, under the paths of a ViT."""
    rng = np.random.default_rng(0)
    shapes = {
        "blocks": {
            "mlp": {
                "up": {"kernel": (DEPTH, WIDTH, HIDDEN), "bias": (DEPTH, HIDDEN)},
                "down": {"kernel": (DEPTH, HIDDEN, WIDTH)},
            }
        },
        "head": {"kernel": (WIDTH, 3), "bias": (3,)},
    }
    return jax.tree.map(
        lambda shape: (0.3 * rng.normal(size=shape)).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


def make_batch(size=8):
    x = np.random.default_rng(1).normal(size=(size, WIDTH)).astype(np.float32)
    return {"x": x, "example_mask": np.ones(size, np.float32)}


def loss(variables, batch, rng, train):
    params = variables["params"]

    def block(x, mlp):
        return x + jnp.tanh(x @ mlp["up"]["kernel"] + mlp["up"]["bias"]) @ mlp["down"]["kernel"], None

    x, _ = jax.lax.scan(block, batch["x"], params["blocks"]["mlp"])
    return jnp.mean((x @ params["head"]["kernel"] + params["head"]["bias"]) ** 2), {}, {}


def make_tx(name):
    fields = {"name": name, "weight_decay": 0.1, "clip_norm": 0.5}
    if name == "adafactor":
        fields["min_dim_size_to_factor"] = 8
    roles = {
        path: Role("matrix" if path.endswith("kernel") else "bias", "block" if path.startswith("blocks") else "head")
        for path in flatten(make_params())
    }
    return optimizer.build(fields, {"name": "constant", "peak": 0.05}, make_params(), Clock(8, 8, 10), roles)


def create(tx):
    return TrainState.create({"params": make_params()}, tx, jax.random.key(0), ema=True)


def trained(name, mesh, preset, steps=3):
    tx, schedule = make_tx(name)
    places = sharding.state_shardings(jax.eval_shape(lambda: create(tx)), preset, mesh)
    state = jax.jit(lambda: create(tx), out_shardings=places)()
    step = jit_train_step(
        make_train_step(make_gradients(loss), tx, schedule=schedule, ema_decay=0.5),
        places,
        sharding.batch_sharding(mesh),
    )
    batch = sharding.put_batch(make_batch(), mesh)
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor", "muon"])
def test_steps_equal_those_of_one_device(name):
    single = sharding.make_mesh({"data": 1}, devices=jax.devices()[:1])
    expected, expected_metrics = trained(name, single, "replicated")
    state, metrics = trained(name, sharding.make_mesh(FULL), "fsdp+tensor")
    for path, value in flatten((expected.params, expected.ema)).items():
        np.testing.assert_allclose(flatten((state.params, state.ema))[path], value, atol=1e-5, err_msg=path)
    np.testing.assert_allclose(metrics["grad_norm"], expected_metrics["grad_norm"], rtol=1e-4)


def test_moments_and_averages_lie_where_their_parameters_lie():
    mesh = sharding.make_mesh(FULL)
    state, _ = trained("adamw", mesh, "fsdp+tensor", steps=1)
    for path, leaf in flatten(state.params).items():
        mirrors = [other for place, other in flatten((state.opt_state, state.ema)).items() if place.endswith(path)]
        assert len(mirrors) == 3  # first and second moment, average
        assert all(other.sharding.is_equivalent_to(leaf.sharding, leaf.ndim) for other in mirrors), path


@pytest.mark.parametrize(
    ("axes", "preset", "parts"), [({"fsdp": 8}, "fsdp", 8), (FULL, "fsdp+tensor", 4), ({"data": 8}, "replicated", 1)]
)
def test_each_device_holds_its_part_only(axes, preset, parts):
    state, _ = trained("adamw", sharding.make_mesh(axes), preset, steps=1)
    for place, leaf in flatten((state.params, state.opt_state, state.ema)).items():
        if place.endswith("kernel") and "blocks" in place:
            assert len(leaf.addressable_shards) == 8
            assert all(shard.data.size == leaf.size // parts for shard in leaf.addressable_shards), place


def test_factored_moments_and_counters_are_replicated():
    state, _ = trained("adafactor", sharding.make_mesh(FULL), "fsdp+tensor", steps=1)
    leaves = flatten(state.opt_state)
    factored = {path: leaf for path, leaf in leaves.items() if "v_row" in path or "count" in path}
    assert factored and all(leaf.sharding.is_fully_replicated for leaf in factored.values())


def test_put_batch_gives_each_device_its_examples_once():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    batch = sharding.put_batch({"label": np.arange(8, dtype=np.int32), "x": np.zeros((8, 3), np.float32)}, mesh)
    np.testing.assert_array_equal(batch["label"], np.arange(8))
    shards = sorted(tuple(np.asarray(shard.data)) for shard in batch["label"].addressable_shards)
    assert shards == sorted(2 * [(0, 1), (2, 3), (4, 5), (6, 7)])  # twice: both tensor devices see the same examples


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(ConfigError, match=r"'x' \(6, 3\) .* does not divide into 8 parts"):
        sharding.put_batch({"x": np.zeros((6, 3))}, sharding.make_mesh({"data": 8}))


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ({"data": -1, "fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}),
        ({"data": 8, "tensor": -1}, {"data": 8, "tensor": 1}),
        ({"replica": 2, "data": -1}, {"replica": 2, "data": 4}),
    ],
)
def test_make_mesh_fills_in_the_free_axis(axes, shape):
    assert dict(sharding.make_mesh(axes).shape) == shape


@pytest.mark.parametrize("axes", [{"data": 3}, {"data": 4}, {"data": -1, "tensor": 3}, {"data": 16}])
def test_meshes_that_do_not_make_up_eight_devices_are_errors(axes):
    with pytest.raises(ConfigError, match="does not make up 8 devices"):
        sharding.make_mesh(axes)

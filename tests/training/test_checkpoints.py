"""Checkpoints: what comes back, what stays, what does not fit, and other meshes."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_training as toy

from vitvlm.core.config import ConfigError
from vitvlm.training.best import Best
from vitvlm.training.checkpoints import CheckpointError, Checkpoints

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def shapes_of(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=DEVICE), tree)


def small(number: int):
    return {"w": jnp.full(3, number, jnp.float32)}


def same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_everything_comes_back(tmp_path):
    state = toy.init().replace(step=jnp.int32(7))
    place = {"iterators": [{"base64": "AAE="}], "written": 3}
    with Checkpoints(tmp_path, config={"model": {"width": 5}}) as checkpoints:
        checkpoints.save(7, state, resume=place, metrics={"val/accuracy": 0.25})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore(shapes_of(state))
    same(restored.state, state)
    assert (restored.step, restored.resume, restored.metrics, restored.config) == (
        *(7, place, {"val/accuracy": 0.25}, {"model": {"width": 5}}),
    )


def test_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("workdirs/mine", config={}) as checkpoints:
        checkpoints.save(1, small(1), resume={}, metrics={})
    monkeypatch.chdir("workdirs")
    with Checkpoints("mine", read_only=True) as checkpoints:
        same(checkpoints.restore(shapes_of(small(0))).state, small(1))


def test_dtypes_and_key_kinds_come_back(tmp_path):
    tree = {
        "half": jnp.arange(4, dtype=jnp.bfloat16),
        "bytes": jnp.arange(5, dtype=jnp.uint8),
        "flags": jnp.array([True, False]),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
        "empty": jnp.zeros((0, 3)),
        "nothing": None,
        "nan": jnp.array([np.nan, -0.0, np.inf]),
        "tuple": (jnp.int32(1), {"deep": jnp.int8(-1)}),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        same(checkpoints.restore(shapes_of(tree)).state, tree)


def test_state_may_be_overwritten_while_it_is_saved(tmp_path):
    """The saved arrays are copies: training donates its buffers right after `save` returns."""
    overwrite = jax.jit(lambda array: array * 0 - 1, donate_argnums=0)
    with Checkpoints(tmp_path, keep_last=10) as checkpoints:
        for step in range(1, 5):
            array = jnp.full((1 << 20,), step, jnp.float32).block_until_ready()
            checkpoints.save(step, {"w": array})
            overwrite(array).block_until_ready()
        checkpoints.wait()
        for step in range(1, 5):
            restored = checkpoints.restore({"w": jax.ShapeDtypeStruct((1 << 20,), jnp.float32, sharding=DEVICE)}, step)
            assert (np.asarray(restored.state["w"]) == step).all()


def test_metrics_are_added_to_a_checkpoint_and_the_best_before_goes(tmp_path):
    state = {"kernel": jnp.ones(3)}
    target = {"kernel": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=DEVICE)}
    with Checkpoints(tmp_path, keep_last=1, best=Best("val/score")) as checkpoints:
        for step, score in ((1, 0.3), (2, 0.2), (3, 0.4)):
            checkpoints.save(step, state, resume={"evaluated": []}, metrics={"other/loss": 1.0})
            assert checkpoints.steps() == ([step] if step == 1 else [1, step])
            checkpoints.add_metrics(step, {"val/score": score}, resume={"evaluated": ["val"]})
        assert checkpoints.steps() == [3], "the newest is the best: no other is needed"
    with Checkpoints(tmp_path, keep_last=1, best=Best("val/score")) as checkpoints:
        restored = checkpoints.restore(target)
        assert restored.metrics == {"other/loss": 1.0, "val/score": 0.4}
        assert restored.resume == {"evaluated": ["val"]}
        with pytest.raises(CheckpointError, match="checkpoint 7 could not be given its metrics"):
            checkpoints.add_metrics(7, {}, resume=None)


@pytest.mark.parametrize(
    ("mode", "best_step", "kept"), [("max", 2, [2, 5, 6]), ("min", 4, [4, 5, 6])], ids=["highest", "lowest"]
)
def test_keeps_the_last_and_the_best(tmp_path, mode, best_step, kept):
    scores = {1: 0.3, 2: 0.9, 3: 0.5, 4: 0.1, 5: 0.4}
    best = Best("val/score", mode)
    with Checkpoints(tmp_path, keep_last=2, best=best) as checkpoints:
        for step in range(1, 7):
            metrics = {"val/score": scores[step]} if step in scores else {}
            checkpoints.save(step, small(step), metrics=metrics)
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.best_step(), checkpoints.latest_step()) == (kept, best_step, 6)
    with Checkpoints(tmp_path, keep_last=2, best=best) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best_step()) == (kept, best_step), "known from the records on disk"
    assert sorted(path.name for path in tmp_path.iterdir()) == list(map(str, kept))


def test_arrays_that_do_not_fit_are_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"head": jnp.zeros((4, 10)), "norm": jnp.zeros(4), "old": jnp.zeros(1)})
        target = {"head": jnp.zeros((4, 3)), "norm": jnp.zeros(4, jnp.bfloat16), "new": jnp.zeros(1)}
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore(shapes_of(target))
        assert str(error.value) == (
            f"{tmp_path}: checkpoint 1 does not fit this model and optimizer: "
            "head is float32[4, 10] in the checkpoint and float32[4, 3] in the model, "
            "new is absent in the checkpoint and float32[1] in the model, "
            "norm is float32[4] in the checkpoint and bfloat16[4] in the model and 1 more"
        )
        assert checkpoints.steps() == [1], "what does not fit is not damaged"


def test_missing_checkpoints_are_errors(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="no checkpoint; the folder holds none"):
            checkpoints.restore(shapes_of(small(0)))
        checkpoints.save(1, small(1))
        with pytest.raises(CheckpointError, match="no checkpoint of step 3; the folder holds 1"):
            checkpoints.restore(shapes_of(small(0)), step=3)


def test_read_only_needs_a_folder_and_changes_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="no folder of checkpoints"):
        Checkpoints(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()


def test_bad_arguments():
    with pytest.raises(ConfigError, match="keep_last: 0"):
        Checkpoints("anywhere", keep_last=0)
    with pytest.raises(ConfigError, match=r"checkpoint\.best_mode: 'most'"):
        Best("val/score", "most")


MESHES = """
import sys, jax, numpy as np
import toy_training as toy
from vitvlm.training import sharding
from vitvlm.training.checkpoints import Checkpoints

folder, axes = sys.argv[1], eval(sys.argv[2])
assert jax.device_count() == 8
mesh = sharding.make_mesh(axes)
target, places = toy.target_on(mesh)
with Checkpoints(folder) as checkpoints:
    state = checkpoints.restore(target).state
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(places)):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    split = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.is_fully_replicated]
    assert len(split) == int(sys.argv[3]), len(split)
    checkpoints.save(checkpoints.latest_step() + 1, state)
"""


def test_moves_between_meshes(tmp_path):
    """From one device to eight, to other eight, and back, without a bit changed."""
    state = toy.init()
    with Checkpoints(tmp_path, keep_last=9) as checkpoints:
        checkpoints.save(1, state)
    path = os.pathsep.join(filter(None, [str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    for axes, split in (("{'data': 2, 'fsdp': 4}", "1"), ("{'data': 8, 'fsdp': 1}", "0")):
        run = subprocess.run(
            [sys.executable, "-c", MESHES, str(tmp_path), axes, split],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
        same(checkpoints.restore(shapes_of(state)).state, state)
        assert checkpoints.record(3).arrays == checkpoints.record(2).arrays

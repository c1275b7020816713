"""Frozen parameters on disk: once for all checkpoints, whole or not at all, never lost or changed without a word."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitvlm.core.paths import flatten
from vitvlm.nn.quantized import quantize
from vitvlm.training import storage, stored
from vitvlm.training.checkpoints import CheckpointError, Checkpoints
from vitvlm.training.state import TrainState

# After a failed read Orbax drops its other reads unawaited.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_of(step: int, seed: int = 0) -> TrainState:
    """A state whose frozen part is 30 times as large as the rest; it follows from the seed alone."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    frozen = {"text": {"kernel": quantize(draw(200, 300), "nf4"), "bias": draw(300).astype(jnp.bfloat16)}}
    frozen |= {"image": {"kernel": draw(100, 100)}}
    params = {"head": jnp.full((100, 3), step, jnp.float32)}
    state = TrainState.create({"params": params}, optax.adam(0.1), jax.random.key(step), ema=True, frozen=frozen)
    return state.replace(step=jnp.int32(step))


def target(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def same(found: TrainState, wanted: TrainState) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    words = lambda state: state.replace(rng=jax.random.key_data(state.rng))  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, words(found), words(wanted))


def bases(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("frozen-"))


def size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pristine")
    with Checkpoints(folder, keep_last=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step))
    return folder


@pytest.fixture
def folder(pristine, tmp_path) -> pathlib.Path:
    return shutil.copytree(pristine, tmp_path / "copy")


def test_they_are_saved_once_and_restored_exactly(pristine):
    assert sorted(path.name for path in pristine.iterdir()) == ["2", "3", *bases(pristine)]
    assert len(bases(pristine)) == 1
    bytes_frozen = sum(leaf.nbytes for leaf in jax.tree.leaves(state_of(0).frozen))
    assert size(pristine / "3") < bytes_frozen / 2 < size(pristine / bases(pristine)[0])
    with Checkpoints(pristine, read_only=True) as checkpoints:
        same(checkpoints.restore(target(state_of(0))).state, state_of(3))
        same(checkpoints.restore(target(state_of(0)), step=2).state, state_of(2))
        lazy = flatten(stored.variables(checkpoints.open(3).state, ema=False)["params"])  # without a job
    wanted = flatten({"head": state_of(3).params["head"], **storage.whole(state_of(0).frozen)})
    assert lazy.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(np.asarray(lazy[path]), leaf, err_msg=path)


def test_what_each_checkpoint_keeps_of_them_is_a_name_and_fingerprints(pristine):
    records = [json.loads((pristine / step / "record" / "metadata").read_text())["content"] for step in "23"]
    assert records[0]["base"] == records[1]["base"] and records[0]["base"]["name"] == bases(pristine)[0]
    assert set(records[0]["base"]["arrays"]) == {
        *("frozen/text/kernel/values", "frozen/text/kernel/scales", "frozen/text/bias", "frozen/image/kernel")
    }
    assert not [path for path in records[0]["arrays"] if path.startswith("frozen")]


def test_deletion_never_takes_those_that_a_checkpoint_needs(folder):
    """Others begin to be frozen, as in a later stage: the old ones go with the last checkpoint that needs them."""
    with Checkpoints(folder, keep_last=2) as checkpoints:
        checkpoints.save(4, state_of(4, seed=1))
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4] and len(bases(folder)) == 2
    with Checkpoints(folder, keep_last=2) as checkpoints:
        assert len(bases(folder)) == 2
        same(checkpoints.restore(target(state_of(0)), step=3).state, state_of(3))
        same(checkpoints.restore(target(state_of(0)), step=4).state, state_of(4, seed=1))
        checkpoints.save(5, state_of(5, seed=1))
    with Checkpoints(folder, keep_last=2) as checkpoints:
        assert checkpoints.steps() == [4, 5] and len(bases(folder)) == 1
        same(checkpoints.restore(target(state_of(0))).state, state_of(5, seed=1))


def test_reading_and_damaged_records_delete_nothing(folder):
    (folder / "frozen-0123456789abcdef").mkdir()
    with Checkpoints(folder, read_only=True):
        assert len(bases(folder)) == 2
    record = folder / "2" / "record" / "metadata"
    record.write_text(record.read_text()[:-9])
    with Checkpoints(folder):
        assert len(bases(folder)) == 2
    shutil.rmtree(folder / "2")
    with Checkpoints(folder):
        assert len(bases(folder)) == 1


def test_a_checkpoint_that_is_set_aside_keeps_them(folder):
    (folder / "3").rename(folder / "3.damaged")
    shutil.rmtree(folder / "2")
    with Checkpoints(folder):
        assert len(bases(folder)) == 1


def test_missing_ones_are_an_error_that_says_what_to_do(folder):
    name = bases(folder)[0]
    shutil.rmtree(folder / name)
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(target(state_of(0)))
    assert str(error.value) == (
        f"{folder}/{name}: the frozen parameters are gone: checkpoints hold only what trains; put that folder back "
        "from a copy of the workdir, or begin another workdir with the weights that this one began with "
        "(config.init_from)"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"], "no checkpoint is taken for damaged"


def flip(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[int(0.6 * len(content))] ^= 0x10
    file.write_bytes(content)


def truncate(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate, pathlib.Path.unlink])
def test_changed_bytes_are_an_error(folder, damage):
    name = bases(folder)[0]
    damage(max((path for path in (folder / name).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size))
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(target(state_of(0)))
    said = str(error.value)
    assert said.startswith(f"{folder}/{name}: the frozen parameters are not those that were saved: ")
    assert "\n" not in said and said.endswith("(config.init_from)")
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", name]


def test_other_weights_under_the_same_name_are_an_error(folder, tmp_path):
    with Checkpoints(tmp_path / "other") as checkpoints:
        checkpoints.save(1, state_of(1, seed=1))
    name = bases(folder)[0]
    shutil.rmtree(folder / name)
    shutil.copytree(tmp_path / "other" / bases(tmp_path / "other")[0], folder / name)
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match="checksums differ: frozen/image/kernel"),
    ):
        checkpoints.restore(target(state_of(0)))


def test_what_trains_must_be_what_trained(folder):
    state = state_of(0)
    head = {"head": state.params["head"], "image": state.frozen["image"]}
    other = TrainState.create(
        {"params": head}, optax.adam(0.1), state.rng, ema=True, frozen={"text": state.frozen["text"]}
    )
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(target(other))
    assert str(error.value) == (
        f"{folder}: checkpoint 3 does not fit this model and optimizer: image/kernel trains in this job and is frozen "
        "in the checkpoint (config.optimizer.freeze)"
    )


SAVING = """
import os, pathlib, signal, sys, threading
import jax, jax.numpy as jnp
from vitvlm.training.checkpoints import Checkpoints

folder, trained = pathlib.Path(sys.argv[1]), {"params": {"w": jnp.ones(3)}}
checkpoints = Checkpoints(folder)
checkpoints.save(1, trained)
checkpoints.wait()

def kill_when_it_writes():
    while not [path for path in folder.rglob("frozen-*tmp*/*/d/*") if path.is_file()]:
        pass
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill_when_it_writes, daemon=True).start()
checkpoints.save(2, {**trained, "frozen": {"w": jax.random.normal(jax.random.key(0), (1 << 23,))}})
print("not killed in time")
"""


def test_killed_while_they_are_written_the_next_start_is_right(tmp_path):
    run = subprocess.run([sys.executable, "-c", SAVING, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stdout + run.stderr
    assert len(bases(tmp_path)) == 1 and "tmp" in bases(tmp_path)[0], "an unfinished one is on disk"
    assert not (tmp_path / "2").exists(), "no checkpoint refers to it"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        whole = {"params": {"w": jnp.ones(3)}, "frozen": {"w": jnp.arange(5.0)}}
        checkpoints.save(2, whole)
        checkpoints.wait()
        found = checkpoints.restore(target(whole)).state
        jax.tree.map(np.testing.assert_array_equal, found, whole)
    assert len(bases(tmp_path)) == 1 and "tmp" not in bases(tmp_path)[0]


FULL = """
import resource, sys
import jax, jax.numpy as jnp
from vitvlm.training.checkpoints import CheckpointError, Checkpoints

state = {"params": {"w": jnp.ones(3)}, "frozen": {"w": jax.random.normal(jax.random.key(0), (100_000,))}}
with Checkpoints(sys.argv[1]) as checkpoints:
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, room[1]))
    try:
        checkpoints.save(1, state)
    except CheckpointError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, room)
    checkpoints.save(1, state)
    checkpoints.wait()
    print(checkpoints.steps())
"""


def test_a_full_disk_is_one_line_and_with_room_again_saving_works(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    error, steps = run.stdout.splitlines()
    assert error.startswith(f"{tmp_path}: the frozen parameters, frozen-") and "could not be saved" in error
    assert steps == "[1]" and len(bases(tmp_path)) == 1

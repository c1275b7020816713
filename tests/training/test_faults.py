"""Damage: every file of a checkpoint flipped, cut and deleted; kills in the middle of a save; disks that are full."""

import errno
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_training as toy

from vitvlm.core.config import ConfigError
from vitvlm.training import checkpoints as checkpoints_lib
from vitvlm.training import workdir, writers
from vitvlm.training.checkpoints import CheckpointError, Checkpoints

# After one failed read Orbax drops its other reads unawaited.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state_of(step: int) -> dict:
    """Large enough that arrays lie in data files of their own."""
    rng = np.random.default_rng(step)
    return {
        "params": {
            "kernel": jnp.asarray(rng.normal(size=(40, 50)), jnp.float32),
            "bias": jnp.full(3, step, jnp.bfloat16),
        },
        "step": jnp.int32(step),
        "rng": jax.random.key(step),
    }


TARGET = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=DEVICE), state_of(0))


def assert_whole(restored) -> None:
    """Asserts that a restored state is, bit for bit, the one that was saved at that step."""
    wanted = state_of(restored.step)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(_plain(a), _plain(b)), restored.state, wanted)
    assert restored.resume == {"batches": restored.step} and restored.config == {"lr": 0.1}


def _plain(leaf):
    return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pristine")
    with Checkpoints(folder, config={"lr": 0.1}, keep_last=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), resume={"batches": step})
    return folder


def flip(where):
    def damage(file: pathlib.Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(where * (len(content) - 1))] ^= 0x10
        file.write_bytes(content)

    return damage


def truncate(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    "first byte flipped": flip(0),
    "a byte in the middle flipped": flip(0.6),
    "last byte flipped": flip(1),
    "cut in half": truncate,
    "deleted": pathlib.Path.unlink,
}
# Orbax's notes about a save, which hold nothing of what was saved; and its copies of the data files' index.
HARMLESS = ("commit_success.txt", "_CHECKPOINT_METADATA", "_sharding")


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_no_damage_to_any_file_is_ever_restored(pristine, tmp_path, damage, caplog):
    files = sorted(path.relative_to(pristine) for path in (pristine / "2").rglob("*") if path.is_file())
    assert len(files) > 8
    fell_back = set()
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(pristine, folder)
        damage(folder / file)
        caplog.clear()
        with Checkpoints(folder) as checkpoints:
            restored = checkpoints.restore(TARGET)
        assert_whole(restored)
        if restored.step == 1:
            fell_back.add(file)
            said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
            assert said[0].startswith(f"{folder}: checkpoint 2 is damaged: ") and "\n" not in said[0]
            assert said[1] == f"{folder}: going back to checkpoint 1"
            assert sorted(path.name for path in folder.iterdir()) == ["1", "2.damaged"], (
                "kept for a look, out of the way"
            )
    assert pathlib.Path("2/record/metadata") in fell_back and len(fell_back) > 3
    assert not {file for file in fell_back if file.name in HARMLESS}


def test_orbax_alone_would_restore_the_flipped_byte(pristine, tmp_path):
    """Why there are fingerprints: the store under Orbax does not check an array's own bytes."""
    shutil.copytree(pristine, tmp_path / "copy")
    data = max((tmp_path / "copy" / "2").rglob("*"), key=lambda path: path.stat().st_size)
    flip(0.6)(data)
    with (
        Checkpoints(tmp_path / "copy", read_only=True) as checkpoints,
        pytest.raises(
            CheckpointError, match=r"no whole checkpoint: checkpoint 2 is damaged: checksums differ: params/kernel"
        ),
    ):
        checkpoints.restore(TARGET, step=2)


def test_none_whole_is_an_error_and_moves_nothing(pristine, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(pristine, folder)
    for step in "12":
        flip(0.6)(folder / step / "record" / "metadata")
    with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(TARGET)
    assert str(error.value) == (
        f"{folder}: no whole checkpoint: checkpoint 2 is damaged: its record does not have its digest; "
        "checkpoint 1 is damaged: its record does not have its digest"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_training_goes_on_from_the_last_whole_checkpoint_and_ends_the_same(tmp_path):
    toy.train(tmp_path / "undisturbed", 12, toy.Batches())
    toy.train(tmp_path / "damaged", 9, toy.Batches())
    folder = tmp_path / "damaged" / "checkpoints"
    newest = max(int(path.name) for path in folder.iterdir())
    truncate(max((folder / str(newest)).rglob("*"), key=lambda path: path.stat().st_size))
    toy.train(tmp_path / "damaged", 12, toy.Batches())
    assert (folder / f"{newest}.damaged").is_dir()
    arrays = []
    for name in ("undisturbed", "damaged"):
        with Checkpoints(tmp_path / name / "checkpoints", read_only=True) as checkpoints:
            arrays.append(checkpoints.record(12).arrays)
    assert arrays[0] == arrays[1]


def test_read_only_falls_back_without_moving_anything(pristine, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(pristine, folder)
    truncate(folder / "2" / "record" / "metadata")
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.restore(TARGET).step == 1
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


SAVING = """
import os, pathlib, signal, sys, threading, time
import jax, jax.numpy as jnp
from vitvlm.training.checkpoints import Checkpoints

folder = pathlib.Path(sys.argv[1])
checkpoints = Checkpoints(folder)
checkpoints.save(1, {"w": jnp.full(3, 1.0)})
checkpoints.wait()

def kill_when_it_writes():
    while not [path for path in folder.rglob("2.orbax-checkpoint-tmp/*/*/d/*") if path.is_file()]:
        pass
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill_when_it_writes, daemon=True).start()
checkpoints.save(2, {"w": jax.random.normal(jax.random.key(0), (1 << 23,))})
checkpoints.wait()
print("not killed in time")
"""


def test_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path):
    run = subprocess.run([sys.executable, "-c", SAVING, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stdout + run.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "1"], "the unfinished save is on disk"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        target = {"w": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=DEVICE)}
        assert (checkpoints.restore(target).state["w"] == 1).all()
        checkpoints.save(2, {"w": jnp.full(3, 2.0)})
        checkpoints.wait()
        assert (checkpoints.restore(target).state["w"] == 2).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


FULL = """
import resource, sys, time
import jax, jax.numpy as jnp
from vitvlm.training.checkpoints import CheckpointError, Checkpoints

state = lambda step: {"w": jax.random.normal(jax.random.key(step), (100_000,))}
with Checkpoints(sys.argv[1], keep_last=1) as checkpoints:
    checkpoints.save(1, state(1))
    checkpoints.wait()
    room = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), room[1]))
    try:
        checkpoints.save(2, state(2))
        while True:
            checkpoints.check()
            time.sleep(0.01)
    except CheckpointError as error:
        print(error)
    print(checkpoints.steps())
    resource.setrlimit(resource.RLIMIT_FSIZE, room)
    checkpoints.save(2, state(2))
    checkpoints.wait()
    print(checkpoints.steps())
"""


@pytest.mark.parametrize("room", [20_000, 10], ids=["for a part of the arrays", "for nothing"])
def test_a_disk_that_takes_no_more_ends_the_save_in_one_line_and_loses_nothing(tmp_path, room):
    """The kernel refuses to let files grow: TensorStore, Orbax and Python see a failing write."""
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(room)], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    error, kept, after = run.stdout.splitlines()
    assert error.startswith(f"{tmp_path}: checkpoint 2 could not be saved: ")
    assert os.strerror(errno.EFBIG) in error and "the folder holds 1" in error and "run the same command again" in error
    assert (kept, after) == ("[1]", "[2]"), "the old one stays until there is a new one; with room again, saving works"
    assert "Traceback" not in run.stderr
    assert time.monotonic() - start < 100


@pytest.mark.parametrize("asynchronous", [True, False])
def test_no_space_left(tmp_path, monkeypatch, asynchronous):
    """ENOSPC from the save itself, and from the thread that writes."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), resume={"batches": 1})
        checkpoints.wait()

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

        manager = type(checkpoints._manager)
        if asynchronous:
            monkeypatch.setattr(manager, "_wait_for_checkpointers", full)
        else:
            monkeypatch.setattr(manager, "_get_write_step_directory", full)
        with pytest.raises(CheckpointError, match=r"checkpoint 2 could not be saved: .*No space left on device"):
            checkpoints.save(2, state_of(2))
            checkpoints.wait()
        monkeypatch.undo()
        assert 1 in checkpoints.steps()


def test_metrics_on_a_full_device_are_one_line(tmp_path, monkeypatch):
    writer = writers.JsonlWriter(tmp_path / "metrics.jsonl")

    def full(content):
        with open("/dev/full", "wb", buffering=0) as device:
            return device.write(content)

    monkeypatch.setattr(writer, "_put", full)
    with pytest.raises(
        workdir.WorkdirError, match=r"metrics\.jsonl: the row of step 3 could not be written: .*No space left"
    ):
        writer.write(3, {"loss": 1.0})


@pytest.mark.parametrize("device", ["/dev/full", "/dev/zero", "pipe"])
def test_metrics_are_a_regular_file(device, tmp_path):
    """/dev/full was read for ever, and filled the memory."""
    if device == "pipe":
        os.mkfifo(tmp_path / "pipe")
        device = tmp_path / "pipe"
    with pytest.raises(workdir.WorkdirError, match="is not a regular file"):
        writers.JsonlWriter(device)


def test_unwritable_places_are_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(workdir.WorkdirError, match=r"cannot be written: .*Not a directory.*choose another --workdir"):
        workdir.claim(file / "workdir", {})
    with pytest.raises(CheckpointError, match=r"cannot keep checkpoints here: .*Not a directory"):
        Checkpoints(file / "checkpoints")


def test_another_config_in_the_workdir_lists_the_differing_fields(tmp_path):
    config = {"model": {"width": 64, "patch_size": 8}, "log": {"every": 10}, "seed": 0, "sizes": (8, 16)}
    workdir.claim(tmp_path, config)
    workdir.claim(tmp_path, config | {"log": {"every": 50, "wandb": "project"}})
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ConfigError) as error:
        workdir.claim(tmp_path, config | {"model": {"width": 128, "depth": 2, "patch_size": 8}, "seed": 1})
    assert str(error.value) == (
        f"workdir {tmp_path} began with another config (model/depth: absent before, 2 now; "
        "model/width: 64 before, 128 now; seed: 0 before, 1 now): "
        "set these fields back, choose another --workdir, or go on from its newest checkpoint with them by "
        "--continue_as=NEWDIR; here only total, mesh(/.*)?, sharding(/.*)?, log/.*, evals/.*, checkpoint/.*, "
        "data/workers, data/max_unreadable_fraction, feature_cache/path may change"
    )
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff", b"[1, 2]", b'{"lr": 0.'])
def test_a_config_that_is_gone_or_damaged_is_that_of_the_newest_whole_checkpoint(pristine, tmp_path, content, caplog):
    shutil.copytree(pristine, tmp_path / "checkpoints")
    truncate(tmp_path / "checkpoints" / "2" / "record" / "metadata")
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    assert workdir.read_config(tmp_path) == {"lr": 0.1}
    assert f"{tmp_path / 'config.json'}: is gone or damaged; checkpoint 1 holds the config too" in caplog.text
    with pytest.raises(ConfigError, match=r"lr: 0\.1 before, 0\.2 now"):
        workdir.claim(tmp_path, {"lr": 0.2})
    workdir.claim(tmp_path, {"lr": 0.1})
    assert json.loads((tmp_path / "config.json").read_text()) == {"lr": 0.1}


def test_a_damaged_config_without_any_checkpoint_stops_nothing(tmp_path, caplog):
    workdir.claim(tmp_path, {"seed": 0})
    truncate(tmp_path / "config.json")
    with pytest.raises(workdir.WorkdirError, match=r"no readable config\.json"):
        workdir.read_config(tmp_path)
    workdir.claim(tmp_path, {"seed": 1})
    assert "is damaged, and no checkpoint holds the config" in caplog.text
    assert workdir.read_config(tmp_path) == {"seed": 1}


def test_orbax_does_not_echo_errors(caplog):
    quiet = checkpoints_lib._NoEchoes()
    record = logging.LogRecord("absl", logging.ERROR, "/x/orbax/checkpoint/future.py", 1, "boom", (), None)
    other = logging.LogRecord("absl", logging.ERROR, "/x/elsewhere.py", 1, "boom", (), None)
    assert not quiet.filter(record) and quiet.filter(other)
    with caplog.at_level(logging.DEBUG, logger=checkpoints_lib.__name__):
        assert quiet.filter(record)

"""A training that goes on with a changed config: in its workdir where that is safe, in a new one elsewhere."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.data import pictures
from tests.jobs import golden
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.jobs.ablation import stage
from vitvlm.jobs.training import stages, train
from vitvlm.jobs.training.setup import load_state, setup
from vitvlm.training import continuing, writers
from vitvlm.training.checkpoints import CheckpointError
from vitvlm.training.workdir import WorkdirError, read_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    pictures.folder(root, {"cat": 20, "dog": 20}, size=(24, 24))
    found = golden.load("configs/vit.py", f"debug,source=folder:{root}")
    found.data.train.split, found.data.eval.split = "train", "test"
    return found


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A workdir at the end of its 4 steps, which no test changes."""
    folder = tmp_path_factory.mktemp("finished") / "workdir"
    train.train(config, folder)
    return folder


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "workdir")


def changed(config, **fields):
    """The config with fields of a path such as schedule__peak."""
    new = config.copy_and_resolve_references()
    with new.unlocked(), new.ignore_type():
        for path, value in fields.items():
            *sections, name = path.split("__")
            section = new
            for each in sections:
                section = section[each]
            section[name] = value
    return new


def state(folder):
    return load_state(setup(read_config(folder)).training, folder)


def test_a_finished_job_trains_longer_and_is_evaluated_by_more(config, workdir, capsys):
    longer = changed(config, total="6 steps", evals__nearest={"type": "knn", "ks": (3,)}, checkpoint__keep_last=2)
    metrics = train.train(longer, workdir)
    said = " ".join(capsys.readouterr().err.split())
    assert state(workdir).step == 6 and "nearest/top1_k3" in metrics
    rows = writers.read(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert "total: '4 steps' before, '6 steps' now" in said and "going on from checkpoint 4" in said
    (kept,) = [row["config/changed"] for row in rows if "config/changed" in row]
    assert kept == "total: '4 steps' before, '6 steps' now"
    rate = float(setup(longer).training.optimizer()[1](4))
    assert f"the next one is {rate:.3g}" in said
    (fifth,) = [row["train/learning_rate"] for row in rows if row["step"] == 5 and "train/loss" in row]
    assert fifth == pytest.approx(rate)
    with pytest.raises(ConfigError, match=r"config\.total: '4 steps' is 4 steps, and .* a checkpoint of step 6: give"):
        train.train(config, workdir)


def test_another_mesh_is_gone_on_with(config, workdir):
    moved = changed(config, total="5 steps", sharding="fsdp").to_dict() | {"mesh": {"data": 1, "fsdp": -1}}
    train.train(moved, workdir)
    assert state(workdir).step == 5


def test_a_sweep_does_not_train_a_variant_longer(config, workdir):
    """A variant that is half done would have another schedule than the others."""
    with pytest.raises(ConfigError, match="began with total='4 steps', and this sweep has '6 steps'"):
        stage.run(changed(config, total="6 steps").to_dict(), workdir)


def test_other_fields_are_refused_and_the_refusal_names_the_way(config, workdir):
    with pytest.raises(ConfigError, match=r"schedule/peak: 0\.001 before, 0\.0001 now.*--continue_as=NEWDIR"):
        train.train(changed(config, schedule__peak=1e-4), workdir)
    assert read_config(workdir)["schedule"]["peak"] == 1e-3


def test_in_a_new_workdir_every_field_may_change(config, finished, tmp_path):
    new = tmp_path / "new"
    other = changed(config, total="6 steps", schedule__peak=1e-4, batch_size=4, seed=3, optimizer__weight_decay=0.2)
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*") if path.is_file())
    stages.train(other, finished, continue_as=new)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in finished.rglob("*") if path.is_file())
    assert continuing.read(new) == continuing.Continued(str(finished), 4)
    assert state(new).step == 6 and read_config(new)["schedule"]["peak"] == 1e-4
    rows = writers.read(new / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    (said,) = [row["config/changed"] for row in rows if "config/changed" in row]
    assert "schedule/peak: 0.001 before, 0.0001 now" in said and "batch_size: 8 before, 4 now" in said
    whole = [row["train/loss"] for row in rows if row["step"] <= 4 and "train/loss" in row]
    assert whole == [row["train/loss"] for row in writers.read(finished / "metrics.jsonl") if "train/loss" in row]

    stages.train(other, finished, continue_as=new)  # the same command again does nothing new
    assert rows == writers.read(new / "metrics.jsonl")
    with pytest.raises(ConfigError, match="schedule/peak"):  # from its own checkpoint on it is a workdir as any
        stages.train(config, finished, continue_as=new)


def test_it_begins_with_the_state_of_the_first(config, finished, tmp_path):
    continuing.begin(finished, tmp_path / "new")
    jax.tree.map(
        np.testing.assert_array_equal, flatten(state(tmp_path / "new").params), flatten(state(finished).params)
    )
    assert json.loads((tmp_path / "new" / "continued.json").read_text())["step"] == 4


def test_what_cannot_be_continued_is_one_line(config, finished, tmp_path):
    with pytest.raises(WorkdirError, match=r"is the workdir itself"):
        stages.train(config, finished, continue_as=finished)
    with pytest.raises(WorkdirError, match=r"is not the workdir of a training"):
        stages.train(config, tmp_path / "nothing", continue_as=tmp_path / "new")
    taken = shutil.copytree(finished, tmp_path / "taken")
    with pytest.raises(WorkdirError, match=r"another training began there; give a new folder"):
        stages.train(config, finished, continue_as=taken)
    continuing.begin(taken, tmp_path / "third")
    with pytest.raises(WorkdirError, match=r"goes on from .*taken already; give a new folder"):
        stages.train(config, finished, continue_as=tmp_path / "third")
    wider = changed(config, model__width=36)
    with pytest.raises(
        CheckpointError, match=r"does not fit this model and optimizer: .* is float32\[24\] in the check"
    ):
        stages.train(wider, finished, continue_as=tmp_path / "wider")

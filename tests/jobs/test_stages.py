"""Trainings in stages: each begins with the parameters of the one before, and any may be killed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vitvlm import pretrained
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.training import stages, train
from vitvlm.training import workdir
from vitvlm.training.checkpoints import Checkpoints

HEAD, REST = (("head/.*", False), (".*", True)), (("head/.*", True), (".*", False))


def a_config(**changes):
    """Three stages of two steps: the head, then all else with other data and rates, then all with an average."""
    operations = "decode|random_resized_crop(16)|normalize"
    evals = {"held_out": {"type": "classification", "at_end": True}}
    return {
        "seed": 3,
        "total": "2 steps",
        "batch_size": 4,
        "task": {"name": "classify", "mixup": 0.8},
        "model": {
            "name": "vit",
            **{"width": 16, "depth": 2, "heads": 2, "mlp_width": 32, "patch_size": 8, "image_size": 16},
            **{"num_classes": "data", "dropout": 0.1},
        },
        "data": {
            "source": "emoji",
            "train": {"split": "train[:32]", "ops": operations},
            "eval": {"split": "test[:8]", "ops": "decode|resize(16)|normalize"},
        },
        "optimizer": {"name": "adamw", "clip_norm": 1.0},
        "schedule": {"name": "constant", "peak": 1e-2},
        "evals": evals,
        "checkpoint": {"every": "1 steps"},
        "log": {"every": 1},
        "stages": {
            "order": ("top", "below", "whole"),
            "top": {"optimizer": {"freeze": HEAD}},
            "below": {
                "optimizer": {"freeze": REST},
                "schedule": {"peak": 3e-3},
                "data": {"train": {"split": "train[32:64]"}},
            },
            "whole": {"total": "3 steps", "ema_decay": 0.9, "optimizer": {"name": "sgd", "clip_norm": None}},
        },
    } | changes


KILLED = """
import json, os, signal, sys
from vitvlm.jobs.training import stages, train

folder, stage = sys.argv[1:]
compiled = train.compiled_step

def deadly(training):
    step = compiled(training)

    def run(state, batch):
        if here == stage and int(state.step) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(state, batch)

    return run

def noted(prepared, folder, *rest):
    global here
    here = os.path.basename(str(folder))
    return one(prepared, folder, *rest)

one, train.run, train.compiled_step, here = train.run, noted, deadly, ""
stages.train(json.load(open(folder + ".json")), folder)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("stages") / "workdir", []
    return folder, stages.train(a_config(), folder, say=said.append), said


def last(folder):
    with Checkpoints(folder / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        return flatten(checkpoints.first_whole(checkpoints.open, None).state)


def test_each_stage_begins_where_the_one_before_ended(undisturbed):
    folder, metrics, said = undisturbed
    assert said == ["stage 1 of 3, top", "stage 2 of 3, below", "stage 3 of 3, whole"]
    assert [workdir.read_config(folder / name)["total"] for name in ("top", "below", "whole")] == [
        "2 steps",
        "2 steps",
        "3 steps",
    ]
    done = json.loads((folder / "stages.json").read_text())["done"]
    assert set(done) == {"top", "below", "whole"} and done["whole"] == metrics
    top, below = (flatten(pretrained.load(folder / name).variables["params"]) for name in ("top", "below"))
    for path, value in top.items():  # the second stage holds the head still, and moves all else
        assert np.array_equal(below[path], value) == path.startswith("head/"), path
    assert workdir.read_config(folder / "whole")["optimizer"] == {"name": "sgd", "clip_norm": None}


def test_a_job_killed_in_each_stage_ends_like_one_left_alone(undisturbed, tmp_path):
    folder, metrics, _ = undisturbed
    killed, said = tmp_path / "workdir", []
    (tmp_path / "workdir.json").write_text(json.dumps(a_config()))
    for stage in ("top", "below", "whole"):
        command = [sys.executable, "-c", KILLED, str(killed), stage]
        assert subprocess.run(command, capture_output=True, timeout=300, check=False).returncode == -9, stage
    assert stages.train(a_config(), killed, say=said.append) == metrics
    assert said == ["stage 1 of 3, top: done", "stage 2 of 3, below: done", "stage 3 of 3, whole"]
    for name in ("top", "below", "whole"):
        ours, theirs = last(killed / name), last(folder / name)
        assert ours.keys() == theirs.keys()
        for path, value in theirs.items():
            np.testing.assert_array_equal(np.asarray(ours[path]), np.asarray(value), err_msg=f"{name}: {path}")


def test_a_workdir_of_stages_is_its_latest_stage(undisturbed):
    folder, metrics, _ = undisturbed
    whole = flatten(pretrained.load(folder / "whole").variables["params"])
    for path, value in flatten(pretrained.load(folder).variables["params"]).items():
        np.testing.assert_array_equal(value, whole[path])
    (found,) = evaluate.evaluate(folder)
    assert found.result.metrics["top1"] == metrics["held_out/top1"]


def test_a_workdir_that_was_moved_goes_on(undisturbed, tmp_path):
    folder, metrics, _ = undisturbed
    moved = folder.rename(folder.with_name("moved"))
    try:
        assert stages.train(a_config(), moved, say=lambda text: None) == metrics
    finally:
        moved.rename(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": ("top", "belwo")}, r"config\.stages\.order: no stage 'belwo'; .*below"),
        ({"order": None}, r"config\.stages\.order: missing"),
        ({"order": ("top", "top")}, r"names a stage twice"),
        ({"top": {"optimizr": {}}}, r"stage top: config\..*optimizr"),
        (
            {"below": {"init_from": {"path": "elsewhere"}}},
            r"stage below: config\.init_from\.path: a later stage begins",
        ),
        (
            {"whole": {"model": {"depth": 3}}},
            r"stage whole: config\.init_from\.rules: no source for blocks/attention",
        ),
        ({"whole": {"total": "0 steps"}}, r"stage whole: config\.total"),
        ({"below": {"evals": {"held_out": {"every": "1 lightyear"}}}}, r"stage below: config\.evals\.held_out\.every"),
        ({"below": 3}, r"config\.stages\.below: 3 is no section"),
    ],
)
def test_mistakes_in_any_stage_are_said_before_the_first_begins(tmp_path, change, message):
    config = a_config()
    config["stages"] = config["stages"] | change
    with pytest.raises((ConfigError, ValueError), match=message):
        stages.train(config, tmp_path / "workdir", say=lambda text: None)
    assert not (tmp_path / "workdir" / "top" / "checkpoints").exists()


def test_a_stage_that_is_done_keeps_its_config(undisturbed):
    folder, _, _ = undisturbed
    config = a_config()
    config["stages"]["top"] = {"optimizer": {"freeze": HEAD}, "schedule": {"peak": 1.0}}
    with pytest.raises(ConfigError, match=r"stage top: workdir .* began with another config \(schedule/peak"):
        stages.train(config, folder, say=lambda text: None)
    config = a_config()
    config["stages"]["order"] = ("below", "top", "whole")
    with pytest.raises(ConfigError, match="began with top, below, whole"):
        stages.train(config, folder, say=lambda text: None)


def test_what_takes_one_stage_says_so():
    with pytest.raises(ConfigError, match=r"config\.stages: give the config of one stage"):
        train.prepare(a_config(), "nowhere")

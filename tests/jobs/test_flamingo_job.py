"""A VLM whose frozen parts cost nothing: what trains, what a checkpoint holds, and its gates among the metrics."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest

from tests.jobs import golden
from vitvlm.core import config as config_lib
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import count_bytes, flatten
from vitvlm.jobs.benchmarks import adapting
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import load_state, setup

CONFIG = "configs/flamingo.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flamingo")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        train.train(golden.load(CONFIG, "debug,adapt=cross"), folder)
    return folder, said.getvalue()


def test_what_looks_at_images_trains_and_nothing_else(trained):
    """The state's parameters, and the files of a checkpoint: frozen parts lie there once, unchanged."""
    folder, _ = trained
    training = setup(golden.load(CONFIG, "debug,adapt=cross")).training
    state, fresh = load_state(training, folder), train.first_state(training)
    paths = flatten(state.params)
    assert paths and all(p.startswith("connector/") or "/look/" in p or "_added/" in p for p in paths)
    assert not any("/look/" in p or p.startswith("connector/") for p in flatten(state.frozen))
    assert any(p.startswith("image/") for p in flatten(state.frozen))
    assert any(np.any(flatten(fresh.params)[path] != leaf) for path, leaf in paths.items() if path.endswith("_gate"))
    for path, leaf in flatten(state.frozen).items():
        np.testing.assert_array_equal(leaf, flatten(fresh.frozen)[path])
    frozen = sum(f.stat().st_size for f in folder.glob("checkpoints/frozen-*/**/*") if f.is_file())
    steps = [step for step in (folder / "checkpoints").iterdir() if step.name.isdecimal()]
    assert frozen > 0.8 * count_bytes(state.frozen) and len(steps) == 1
    assert count_bytes(state.opt_state) < 2.1 * count_bytes(state.params) + 100


def test_gates_are_metrics(trained):
    rows = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    gates = [row["train/gate_cross"] for row in rows if "train/gate_cross" in row]
    assert len(gates) == 4 and gates[0] == 0 < gates[-1]
    assert all("train/gate_mlp" in row for row in rows if "train/gate_cross" in row)


def test_gates_are_in_the_report_of_an_evaluation(trained):
    (row,) = evaluate.evaluate(trained[0], ["held_out"])
    assert np.isfinite(row.result.metrics["log_likelihood"])
    *_, table = sorted((trained[0] / "evaluations").rglob("gates.csv"))  # of the training's own evaluations too
    lines = table.read_text().splitlines()
    assert lines[0] == "gate,layer,value" and {line.split(",")[0] for line in lines[1:]} == {"cross", "mlp"}


def test_the_gap_of_images_is_logged_and_a_closed_one_is_a_warning(trained):
    """Warnings are those of the figures in the log: gates of 0 are no gap, but nothing has been trained then."""
    folder, said = trained
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    gaps = {row["step"]: row for row in rows if "image_gap/gap_other" in row}
    assert sorted(gaps) == [0, 1, 2, 3, 4] and gaps[0]["image_gap/n"] == 8
    for name in ("other", "none"):
        losses = [row[f"image_gap/loss_{name}"] - row["image_gap/loss_right"] for row in gaps.values()]
        np.testing.assert_allclose(losses, [row[f"image_gap/gap_{name}"] for row in gaps.values()], atol=1e-6)
        assert losses[0] == pytest.approx(0, abs=1e-6) and abs(losses[4]) > 1e-6
    for step, row in gaps.items():
        closed = False
        for name in ("image_gap/gap_other", "image_gap/gap_none"):
            best = max((gaps[before][name] for before in range(step)), default=-np.inf)
            closed |= row[f"{name}_low"] <= 0 or row[name] < best / 2
        assert (f"step {step}: warning: image_gap: the gap between" in said) == (closed and step > 0)


def test_memory_of_the_ways(tmp_path):
    """Arguments, moments and checkpoints of what trains alone; nothing as large as gradients of the frozen parts."""
    named = {way: config_lib.plain(golden.load(CONFIG, f"debug,adapt={way}")) for way in ("full", "cross")}
    full, cross = adapting.run(named, jax.devices()[:1], str(tmp_path))
    assert full.frozen == full.once == 0 and 0 < cross.trains < full.trains
    assert cross.once == cross.frozen == 4 * (full.trains - cross.trains)
    for one in (full, cross):
        assert one.trained == 4 * one.trains and one.moments - 2 * one.trained < 100
        assert 0 <= one.checkpoint - 3 * one.trained < 200
        assert one.arguments >= one.state
    assert full.temporaries - cross.temporaries > 2 * (full.trains - cross.trains)
    assert "| cross |" in (tmp_path / "adapting.md").read_text()


def test_a_way_that_does_not_exist():
    for arg, message in (("adapt=gates", "adapt=gates"), ("size=8B", "size=8B")):
        with pytest.raises(ConfigError, match=message):
            golden.load(CONFIG, arg)

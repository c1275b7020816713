"""Fine-tuning a language model by its config: as a whole, by LoRA and by QLoRA; killed and started again; memory."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.jobs import golden
from vitvlm import pretrained
from vitvlm.core import config as config_lib
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.jobs.benchmarks import adapting
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import load_state, setup
from vitvlm.nn.lora import is_adapter

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "configs/lm_emoji.py"
KILLED = """
import os, signal, sys
from tests.jobs import golden
from vitvlm.jobs.training import train

compiled = train.compiled_step

def deadly(training):
    step = compiled(training)

    def run(state, batch):
        if int(state.step) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(state, batch)

    return run

train.compiled_step = deadly
train.train(golden.load("configs/lm_emoji.py", "debug,adapt=qlora"), sys.argv[1])
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qlora")
    return folder, train.train(golden.load(CONFIG, "debug,adapt=qlora"), folder)


def test_a_training_and_its_held_out_likelihood(undisturbed):
    folder, final = undisturbed
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held_out = [row["held_out/log_likelihood"] for row in rows if "held_out/log_likelihood" in row]
    assert len(held_out) == 3 and held_out[-1] == final["held_out/log_likelihood"]
    assert final["held_out/log_likelihood_low"] < held_out[-1] < final["held_out/log_likelihood_high"]
    assert final["held_out/perplexity"] == pytest.approx(np.exp(-held_out[-1]))
    assert all(np.isfinite(row["train/loss"]) for row in rows if "train/loss" in row)
    (row,) = evaluate.evaluate(folder)
    assert row.result.metrics["log_likelihood"] == pytest.approx(held_out[-1], rel=1e-5)


def test_killed_and_started_again_it_ends_bit_for_bit_the_same(undisturbed, tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "run"], cwd=ROOT, capture_output=True, timeout=300
    )
    assert killed.returncode == -9, killed.stderr[-2000:]
    config = golden.load(CONFIG, "debug,adapt=qlora")
    assert train.train(config, tmp_path / "run") == undisturbed[1]
    training = setup(config).training
    for a, b in zip(*(jax.tree.leaves(load_state(training, each)) for each in (undisturbed[0], tmp_path / "run"))):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_afterwards_it_is_a_plain_decoder(undisturbed):
    loaded = pretrained.load(undisturbed[0])
    assert not any(is_adapter(path) for path in flatten(loaded.variables["params"])) and loaded.adapters
    assert loaded.model.apply(loaded.variables, np.array([[3, 4, 5]])).logits.shape == (1, 3, 2000)


def test_what_it_writes_is_judged(undisturbed):
    """Evaluators of what a model writes are reached by name, with fields of the command line."""
    own = {"data": {"split": "test[:3]"}, "max_new_tokens": 4}
    changes = {"evals": {"captions": {"references": "keywords", "meteor": False, **own}}}
    changes["evals"]["questions"] = {"answers": "keywords", "rule": "relaxed", "types": "group", **own}
    captions, questions = evaluate.evaluate(undisturbed[0], ["captions", "questions"], changes=changes)
    assert 0 <= captions.result.metrics["cider"] < 1 and captions.result.metrics["n"] == 3
    assert "at most 4 tokens" in questions.result.protocol and "relaxed match" in questions.result.protocol
    folder = undisturbed[0] / "evaluations" / f"{questions.step:08d}"
    with np.load(folder / "questions" / "examples.npz") as one, np.load(folder / "captions" / "examples.npz") as other:
        assert len(set(one["id"])) == 3 and (one["answer"] == other["answer"]).all() and all(one["truth"])
    wrong = {"evals": {"captions": {"references": "keyword"}}}
    with pytest.raises(ConfigError, match=r"config\.evals\.captions\.references: .* have no 'keyword'; did you mean"):
        evaluate.evaluate(undisturbed[0], ["captions"], changes=wrong)


@pytest.mark.parametrize("adapt", ["full", "lora"])
def test_what_trains(adapt):
    job = setup(golden.load(CONFIG, f"debug,adapt={adapt}"))
    state = job.training.state_shapes
    adapters = {path for path in flatten(state.params) if is_adapter(path)}
    assert bool(adapters) == (adapt == "lora") and (adapters == set(flatten(state.params))) == (adapt == "lora")
    assert "records in" in str(job.data.source)


def test_memory_of_the_ways(tmp_path):
    named = {way: config_lib.plain(golden.load(CONFIG, f"debug,adapt={way}")) for way in ("full", "lora", "qlora")}
    full, lora, qlora = adapting.run(named, jax.devices()[:1], str(tmp_path))
    assert full.frozen == 0 and full.trained == 4 * full.trains and full.moments >= 2 * full.trained
    assert lora.frozen > full.trained and lora.moments < full.moments / 4
    assert qlora.frozen < lora.frozen and qlora.trained == lora.trained
    for one in (full, lora, qlora):
        assert one.arguments >= one.state and one.temporaries > 0
    assert "| qlora |" in (tmp_path / "adapting.md").read_text()
    with pytest.raises(ConfigError, match="name one or more"):
        adapting.run({}, jax.devices()[:1], str(tmp_path))


def test_a_way_that_does_not_exist():
    with pytest.raises(ConfigError, match="adapt=lara"):
        golden.load(CONFIG, "lara")

"""A task of texts alone trains on rows without images, through the one train loop."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.training.setup import setup
from vitvlm.jobs.training.train import train
from vitvlm.objectives import masked
from vitvlm.tasks import TASKS
from vitvlm.tasks.base import Task
from vitvlm.training.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class ShortTexts(Task):
    """Learns how many tokens a text has, from its embedding."""

    model: object

    def init(self, rng, batch):
        return dict(self.model.init(rng, batch["text_tokens"], batch["text_mask"]))

    def loss(self, variables, batch, rng, train):
        pooled = self.model.apply(variables, batch["text_tokens"], batch["text_mask"]).pooled
        wanted = batch["text_mask"].sum(axis=1) / batch["text_mask"].shape[1]
        return masked.mean((pooled.mean(axis=-1) - wanted) ** 2, batch["example_mask"]), {}, {}

    @property
    def predict_fns(self):
        def features(variables, batch):
            return {"features": self.model.apply(variables, batch["text_tokens"], batch["text_mask"]).pooled}

        return {"features": features}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS._builders, "short_texts", ShortTexts)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"text": "word " * (i % 5 + 1), "label": ("short", "long")[i % 5 > 2]}) + "\n" for i in range(40)
        )
    )
    model = dict(name="text", vocab_size=2000, length=8, width=8, depth=1, heads=2, mlp_width=16)
    split = dict(split="all", ops="tokenize('emoji', 8, field='text')")
    return dict(
        model=model,
        task=dict(name="short_texts"),
        data=dict(source=f"jsonl:{rows}", train=split, eval=split),
        total=6,
        batch_size=8,
        optimizer=dict(name="adamw"),
        schedule=dict(name="constant", peak=1e-2),
        checkpoint=dict(every=3, keep_last=2),
        log=dict(every=1),
        evals=dict(neighbours=dict(type="knn", every=3, ks=(3,), leave_one_out=True), saved=dict(type="features")),
    )


def test_sets_up_texts_alone(config):
    assert set(setup(config).model.example_batch) == {"text_tokens", "text_mask", "example_mask", "index", "label"}


@pytest.fixture
def job(config, tmp_path):
    return tmp_path / "job", train(config, tmp_path / "job")


def rows(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in found]


def test_trains_on_texts_alone_and_is_evaluated(job):
    """While it trains and afterwards, by evaluators that learn from labels or save features; neither sees an image."""
    folder, metrics = job
    losses = [row["train/loss"] for row in rows(folder) if "train/loss" in row]
    assert len(losses) == 6 and np.isfinite(losses).all()
    found = {row.name: row.result for row in evaluate.evaluate(folder)}
    again = {f"{name}/{figure}": value for name, each in found.items() for figure, value in each.metrics.items()}
    assert again == metrics and metrics["saved/n"] == 40
    saved = np.load(folder / "evaluations" / "00000006" / "saved" / "features.npz")
    assert saved["features"].shape == (40, 8) and set(saved["class_names"]) == {"short", "long"}
    assert len(set(saved["id"])) == 40


def test_resumes_as_if_undisturbed(config, job, tmp_path):
    folder, metrics = job
    stopped = shutil.copytree(folder, tmp_path / "stopped")
    shutil.rmtree(stopped / "checkpoints" / "6")
    assert train(config, stopped) == metrics
    arrays = []
    for each in (folder, stopped):
        with Checkpoints(each / "checkpoints", read_only=True) as checkpoints:
            assert checkpoints.steps() == [3, 6]
            arrays.append(dict(checkpoints.record(6).arrays))
    assert arrays[0] == arrays[1] and rows(folder) == rows(stopped)

"""A task of texts alone trains on rows without images, through the one train loop."""

import dataclasses
import json

import numpy as np
import pytest

from vitvlm.jobs.training.setup import setup
from vitvlm.jobs.training.train import train
from vitvlm.objectives import masked
from vitvlm.tasks import TASKS
from vitvlm.tasks.base import Task


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
        return {}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS._builders, "short_texts", ShortTexts)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "word " * (i % 5 + 1)}) + "\n" for i in range(40)))
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
        checkpoint=dict(every=3),
    )


def test_trains_on_texts_alone(config, tmp_path):
    assert set(setup(config).model.example_batch) == {"text_tokens", "text_mask", "example_mask", "index"}
    train(config, tmp_path / "job")
    rows = [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row] or [
        row["loss"] for row in rows if "loss" in row
    ]
    assert losses and np.isfinite(losses).all()
    assert sorted(path.name for path in (tmp_path / "job" / "checkpoints").iterdir() if path.name.isdigit())[-1] == "6"

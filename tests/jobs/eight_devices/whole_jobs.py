"""Whole jobs on eight devices, from a config to the last evaluation (see tests/training/test_devices.py)."""

import jax
import numpy as np

from tests.jobs import golden
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.jobs.training import train
from vitvlm.training import writers

ONE = jax.sharding.AbstractMesh((1, 1), ("data", "fsdp"))


def test_a_contrastive_job_with_a_frozen_tower(tmp_path, monkeypatch):
    """FLOPs of one example were counted with the loss of a batch that is split: no such job could begin."""
    config = golden.load("configs/lit_emoji.py", "debug")
    config.mesh, config.sharding = {"data": 2, "fsdp": 4}, "fsdp"
    config.batch_size, config.total = 16, "2 steps"
    config.log.every = 1
    said = []
    monkeypatch.setattr(train.Progress, "note", lambda self, line: said.append(line))
    train.train(config, tmp_path / "workdir")
    rows = writers.read(tmp_path / "workdir" / "metrics.jsonl")
    losses = [value for _, value in writers.numbers(rows, "train/loss")]
    assert len(losses) == 2 and np.isfinite(losses).all()
    flops = ModelSetup.of(config, mesh=ONE).forward_flops
    assert f"{flops / 1e9:.3g} GFLOPs per image forward; 8 cpu devices (data 2 x fsdp 4 x tensor 1)" in said[0]

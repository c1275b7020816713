"""Whole jobs on eight devices, from a config to the last evaluation (see tests/training/test_devices.py)."""

import jax
import numpy as np

from tests.jobs import golden
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import setup
from vitvlm.training import sharding, writers

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


def test_a_frozen_encoders_features(tmp_path):
    """Cached features of a model that is split over devices: the loss with them is the one with images."""
    config = golden.load("configs/llava.py", "debug")
    config.mesh, config.sharding = {"data": 4, "fsdp": 2}, "fsdp"
    config.batch_size, config.total, config.evals = 8, "1 steps", {}
    config.optimizer.freeze = (("image/.*", True), (".*", False))
    config.feature_cache = {"path": str(tmp_path / "features"), "dtype": "float32"}
    train.train(config, tmp_path / "workdir")
    ((_, loss),) = writers.numbers(writers.read(tmp_path / "workdir" / "metrics.jsonl"), "train/loss")
    job = setup(config)
    state, task = train.first_state(job.training), job.model.task
    with job.data.batches() as batches:
        batch = sharding.put_batch(next(batches), job.model.mesh)
    whole = sharding.keep_examples_split(
        lambda variables, batch: task.loss(variables, batch, jax.random.key(0), True)[0], job.model.mesh
    )
    np.testing.assert_allclose(loss, jax.jit(whole)(state.variables(), batch), rtol=1e-5)

"""Whole jobs whose frozen matrices are in 8 or 4 bits: stopped and gone on with, evaluated, and taught from."""

import shutil

import jax
import numpy as np
import pytest

from tests.jobs import golden
from vitvlm import pretrained
from vitvlm.core.paths import flatten
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import load_state, setup
from vitvlm.training import sharding, storage, writers
from vitvlm.training.checkpoints import CheckpointError, Checkpoints

STEPS, STOP = 4, 2


def quantized(kind: str):
    """A ViT of which the blocks' matrices are frozen, with all that a step can carry."""
    config = golden.load("configs/vit.py", "debug")
    config.model.scan, config.model.dropout = True, 0.1
    config.accumulate, config.ema_decay, config.frozen_dtype = 2, 0.9, ((".*kernel", kind), (".*", "bfloat16"))
    config.optimizer.freeze = (("blocks/.*", True), (".*", False))
    config.total, config.checkpoint = f"{STEPS} steps", dict(every=STOP, keep_last=STEPS)
    config.evals.test.every = f"{STOP} steps"
    return config


@pytest.fixture(scope="module", params=["int8", "nf4"])
def undisturbed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    config = quantized(request.param)
    return config, folder, train.train(config, folder)


def rows(folder):
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in writers.read(folder / "metrics.jsonl")
    ]


def test_it_stops_and_goes_on_as_if_undisturbed(undisturbed, tmp_path):
    config, folder, metrics = undisturbed
    stopped = shutil.copytree(folder, tmp_path / "stopped")
    shutil.rmtree(stopped / "checkpoints" / str(STEPS))
    assert train.train(config, stopped) == metrics
    records = []
    for each in (folder, stopped):
        with Checkpoints(each / "checkpoints", read_only=True) as checkpoints:
            assert checkpoints.steps() == [STOP, STEPS]
            records.append(checkpoints.record(STEPS))
    assert records[0].arrays == records[1].arrays and records[0].base == records[1].base
    assert any(path.endswith("kernel/scales") for path in records[0].base.arrays)
    assert not any(path.startswith("frozen") for path in records[0].arrays)
    assert rows(folder) == rows(stopped)
    assert len(list((stopped / "checkpoints").glob("frozen-*"))) == 1


def test_evaluated_afterwards_it_gives_what_the_training_saw(undisturbed, tmp_path):
    _, folder, metrics = undisturbed
    (row,) = evaluate.evaluate(shutil.copytree(folder, tmp_path / "copy"))
    assert {f"test/{name}": value for name, value in row.result.metrics.items()} == metrics


def test_its_weights_are_those_that_it_computes_with(undisturbed):
    """Loaded as weights, matrices are float32: what the blocks made of them, not what they were before."""
    config, folder, _ = undisturbed
    state = load_state(setup(config).training, folder)
    wanted = flatten(storage.whole(state.variables(ema=True)["params"]))
    found = flatten(pretrained.load(folder).variables["params"])
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[path], np.float32), np.asarray(leaf, np.float32), err_msg=path)
    assert isinstance(state.frozen["blocks"]["mlp"]["up"]["kernel"], storage.Quantized)


def test_it_teaches(undisturbed):
    """A distillation's teacher, which says of an image what the workdir's own model says."""
    config, folder, _ = undisturbed
    student = golden.load("configs/deit_imagenet.py", f"debug,teacher={folder},distillation=soft")
    job = setup(student)
    teacher = job.model.task.distillation.teacher
    own = setup(config)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    expected = own.model.task.model.apply(load_state(own.training, folder).variables(ema=True), images).logits
    found = teacher.model.apply(teacher.variables, images).logits
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with job.data.batches() as batches:
        batch = sharding.put_batch(next(batches), job.model.mesh)
    _, metrics = train.compiled_step(job.training)(train.first_state(job.training), batch)
    assert np.isfinite(metrics["loss"]) and metrics["distillation_loss"] > 0


def test_without_what_is_frozen_nothing_goes_on(undisturbed, tmp_path):
    config, folder, _ = undisturbed
    copy = shutil.copytree(folder, tmp_path / "copy")
    (base,) = (copy / "checkpoints").glob("frozen-*")
    shutil.rmtree(base)
    for use in (lambda: train.train(config, copy), lambda: evaluate.evaluate(copy)):
        with pytest.raises(CheckpointError, match=f"{base.name}: the frozen parameters are gone: .* put that"):
            use()
    with pytest.raises(pretrained.WeightsError, match="the frozen parameters are gone"):
        jax.block_until_ready(pretrained.load(copy).variables)

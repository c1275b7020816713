"""A whole training with a teacher from a folder of weights that `transformers` wrote."""

import re
import shutil

import jax
import numpy as np
import pytest
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from tests.jobs import golden
from vitvlm import pretrained
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.data import sources
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import setup
from vitvlm.training import sharding, writers

TERMS = ("loss", "label_loss", "distillation_loss")
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}


@pytest.fixture
def folder(tmp_path):
    """A teacher of 32 px images, normalised otherwise than the student's."""
    classes = sources.open("emoji", "train").num_classes
    theirs = ViTForImageClassification(ViTConfig(**SIZES, image_size=32, patch_size=8, num_labels=classes))
    theirs.save_pretrained(tmp_path / "teacher")
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(
        tmp_path / "teacher"
    )
    return tmp_path / "teacher"


def a_config(folder, argument: str = ""):
    return golden.load("configs/deit_imagenet.py", f"debug,teacher={folder}{argument}")


def test_trains_saves_the_student_alone_and_is_evaluated_without_its_teacher(folder, tmp_path):
    config = a_config(folder, ",distillation=soft")
    metrics = train.train(config, tmp_path / "workdir")
    rows = writers.read(tmp_path / "workdir" / "metrics.jsonl")
    terms = [[row[f"train/{name}"] for row in rows if "train/loss" in row] for name in TERMS]
    np.testing.assert_allclose(terms[0], 0.9 * np.array(terms[1]) + 0.1 * np.array(terms[2]), rtol=1e-4)
    shutil.rmtree(folder)
    rows = {row.name: row.result for row in evaluate.evaluate(tmp_path / "workdir")}
    assert rows["val"].metrics["top1"] == pytest.approx(metrics["val/top1"])
    with pytest.raises(ConfigError, match=r"config\.task\.distillation\.teacher: .*no such file"):
        train.train(config, tmp_path / "workdir")


def test_the_teacher_is_an_argument_of_the_step_that_nothing_changes(folder):
    job = setup(a_config(folder))
    assert not [path for path in flatten(job.training.state_shapes) if "teacher" in path]
    step = train.compiled_step(job.training)
    with job.data.batches() as batches:
        batch = sharding.put_batch(next(batches), job.model.mesh)
    text = step.lower(job.training.target, batch).as_text()
    assert max((len(each) for each in re.findall(r'dense<"0x(\w+)">', text)), default=0) < 1000
    state, _ = step(train.first_state(job.training), batch)
    step(state, batch)
    (constants,) = step.constants.values()
    jax.tree.map(np.testing.assert_array_equal, constants, pretrained.load(folder).variables)


def test_the_teacher_gets_pixels_normalised_as_its_own(folder):
    teacher = setup(a_config(folder)).model.task.distillation.teacher
    pixels = np.array([0.1, 0.5, 0.9])
    student = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(student * teacher.scale + teacher.shift, (pixels - 0.5) / 0.25, atol=1e-5)
    (folder / "preprocessor_config.json").unlink()
    silent = setup(a_config(folder)).model.task.distillation.teacher
    assert (silent.scale, silent.shift) == (1, 0)


def test_a_teacher_in_a_file_alone(folder):
    """What the file does not say is given in the config."""
    config = a_config(folder / "model.safetensors")
    whole = setup(a_config(folder)).model.task.distillation.teacher
    file = setup(config).model.task.distillation.teacher
    assert file.model == whole.model  # by the config beside it
    config.task.distillation.teacher_fields = {"dropout": 0.5}
    assert setup(config).model.task.distillation.teacher.model.dropout == 0.5


def test_sections_that_cannot_be_meant(folder):
    config = a_config(folder)
    config.task.distillation.temprature = 3.0
    with pytest.raises(ConfigError, match=r'config\.task\.distillation\.temprature: .* did you mean "temperature"'):
        setup(config)
    del config.task.distillation.temprature, config.task.distillation.teacher
    with pytest.raises(ConfigError, match=r"config\.task\.distillation: missing field teacher"):
        setup(config)
    with pytest.raises(ConfigError, match=r"no kind 'harsh'"):
        setup(a_config(folder, ",distillation=harsh"))

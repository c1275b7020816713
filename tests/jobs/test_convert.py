"""Weights from one format to another by the command, and what it refuses."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from vitvlm import models, pretrained
from vitvlm.core.config import ConfigError
from vitvlm.jobs import convert

SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "patch_size": 4, "image_size": 8, "num_classes": 3}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    model = models.build("vit", **SIZES)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    pretrained.save(pretrained.Pretrained(model, variables, None, None, {}), folder)
    return folder


def test_the_command_goes_there_and_back(source, tmp_path):
    for start, target, format in [
        (source, tmp_path / "timm", "timm"),
        (tmp_path / "timm", tmp_path / "ours", "vitvlm"),
        (tmp_path / "ours", tmp_path / "hf", "hf"),
    ]:
        command = [
            sys.executable,
            "scripts/convert.py",
            f"--source={start}",
            f"--target={target}",
            f"--format={format}",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "ViT, " in done.stdout and f"format {format}" in " ".join(done.stdout.split())
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    first, last = (pretrained.load(folder) for folder in (source, tmp_path / "hf"))
    np.testing.assert_allclose(
        last.model.apply(last.variables, images).tokens, first.model.apply(first.variables, images).tokens, atol=1e-6
    )


def test_a_workdir_keeps_what_it_was_made_from_and_is_not_written_over(source, tmp_path):
    loaded = convert.convert(str(source), str(tmp_path / "ours"), "vitvlm")
    again = pretrained.load(tmp_path / "ours")
    assert again.model == loaded.model and again.preprocessing == loaded.preprocessing
    with pytest.raises(ConfigError, match="holds checkpoints already: choose another folder"):
        convert.convert(str(source), str(tmp_path / "ours"), "vitvlm")
    changed = dataclasses.replace(loaded, model=loaded.model.clone(heads=4))
    with pytest.raises(ConfigError, match="its fields are not known"):
        pretrained.save(changed, tmp_path / "changed", "vitvlm")


def test_what_cannot_be_converted(source, tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        convert.convert(str(tmp_path / "nowhere"), str(tmp_path / "out"), "hf")
    with pytest.raises(ConfigError, match="format 'onnx'"):
        convert.convert(str(source), str(tmp_path / "out"), "onnx")

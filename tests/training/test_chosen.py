"""Checkpoints by name: the latest, the best, a step, with averages or without; from Python and by --step."""

import numpy as np
import pytest

from tests.data import pictures
from tests.jobs import made_workdir
from vitvlm import pretrained
from vitvlm.core.config import ConfigError
from vitvlm.jobs.evaluation import evaluate
from vitvlm.pretrained import WeightsError
from vitvlm.training.chosen import Choice

NAMES = {
    None: ("latest", None),
    "latest": ("latest", None),
    "best": ("best", None),
    12: (12, None),
    "12": (12, None),
    "12:ema": (12, True),
    "best:raw": ("best", False),
    "ema": ("latest", True),
    "raw": ("latest", False),
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    assert Choice.of(name) == Choice(*NAMES[name])


@pytest.mark.parametrize(("name", "near"), [("bset", "best"), ("12:emma", "ema"), ("-3", "latest"), ("1.5", "latest")])
def test_a_name_that_is_none_names_the_nearest(name, near):
    with pytest.raises(ConfigError, match=near):
        Choice.of(name)


def test_a_name_that_contradicts_ema():
    assert Choice.of("best:ema", True).ema
    with pytest.raises(ConfigError, match="averaged"):
        Choice.of("best:ema", False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("chosen")
    images = pictures.folder(root / "photos", {"cat": 5, "dog": 5, "emu": 5}, size=(20, 24))
    return root / "work", made_workdir.write(root / "work", images)


@pytest.mark.parametrize(
    ("step", "factor", "added", "said"),
    [
        (None, 0.5, 0.04, "checkpoint 4, the latest; averaged parameters (EMA)"),
        ("best:raw", 1.0, 0.02, "checkpoint 2, the best by test/top1 (0.9)"),
        ("best", 0.5, 0.02, "checkpoint 2, the best by test/top1 (0.9); averaged parameters (EMA)"),
        (4, 0.5, 0.04, "checkpoint 4, the latest; averaged parameters (EMA)"),
        ("raw", 1.0, 0.04, "checkpoint 4, the latest"),
    ],
)
def test_the_checkpoint_that_is_meant_is_loaded_and_named(made, step, factor, added, said):
    folder, params = made
    loaded = pretrained.load(folder, step=step)
    kernel = np.asarray(params["patches"]["kernel"])
    np.testing.assert_allclose(loaded.variables["params"]["patches"]["kernel"], (kernel + added) * factor, atol=1e-6)
    assert loaded.source["checkpoint"]["name"] == said
    assert said in repr(loaded) and said in loaded._repr_html_()


def test_checkpoints_that_are_not_there(made, tmp_path):
    with pytest.raises(WeightsError, match="no checkpoint of step 3; the folder holds 2, 4"):
        pretrained.load(made[0], step=3)
    with pytest.raises(WeightsError, match='write "latest", "best" or a step'):
        pretrained.load(made[0], step="lateste")
    pretrained.save(pretrained.load(made[0]), tmp_path / "own", "vitvlm")
    with pytest.raises(WeightsError, match=r"no checkpoint is the best.*checkpoint\.best"):
        pretrained.load(tmp_path / "own", step="best")
    with pytest.raises(WeightsError, match="no averaged parameters"):
        pretrained.load(tmp_path / "own", step="ema")


def test_an_evaluation_takes_the_best_by_name(made):
    (row,) = evaluate.evaluate(made[0], step="best:raw")
    assert row.step == 2
    assert (made[0] / "evaluations" / "00000002" / "results.json").exists()

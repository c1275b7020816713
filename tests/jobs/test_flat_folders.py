"""Images in no folder of a class: an autoencoder trains on them without a probe, and features are computed of them."""

import numpy as np
import pytest

from tests.data import pictures
from tests.jobs import golden
from vitvlm.core.config import ConfigError
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.training import train
from vitvlm.training import writers


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("flat")
    for number in range(20):
        (root / f"{number:02}.png").write_bytes(pictures.encoded(pictures.pattern(24, 24, seed=number)))
    return root


def config(images):
    found = golden.load("configs/mae.py", f"debug,source=folder:{images}")
    found.data.train.split, found.data.eval.split = "train", "test"
    return found


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mae") / "workdir"
    return folder, train.train(config(images), folder)


def test_an_autoencoder_trains_without_a_probe(trained):
    folder, metrics = trained
    assert {name.split("/")[0] for name in metrics} == {"reconstruction"}
    assert [row["step"] for row in writers.read(folder / "metrics.jsonl") if "train/loss" in row] == [1, 2, 3, 4]
    assert (folder / "batch.png").exists()


def test_features_of_a_flat_folder(trained, images):
    changes = golden.load("configs/evaluations/features.py", f"folder:{images}").to_dict()
    changes["data"]["eval"]["ops"] = changes["data"]["train"]["ops"] = config(images).data.eval.ops
    rows = evaluate.evaluate(trained[0], config=changes)
    assert {row.name for row in rows} == {"features", "features_train"}
    (file,) = trained[0].glob("evaluations/*/features/features.npz")
    with np.load(file) as found:
        assert len(found["features"]) == 4 and len(set(found["id"].tolist())) == 4
        assert "label" not in found


def test_a_checkpoint_cannot_be_the_best_by_what_is_left_out(images, tmp_path):
    wrong = config(images)
    wrong.checkpoint.best = "probe/top1"
    with pytest.raises(ConfigError, match="'probe/top1': probe is left out, as its data have no classes"):
        train.train(wrong, tmp_path / "w")

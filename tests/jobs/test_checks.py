"""Checks before the first step: evaluators against their data, and strings in a batch."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from vitvlm.core.config import ConfigError
from vitvlm.data.errors import TooManyUnreadable
from vitvlm.jobs.evaluation import evaluations
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import setup
from vitvlm.training import sharding

OPS = "decode|resize(8)|normalize"
VIT = {"name": "vit", "width": 8, "depth": 1, "heads": 2, "mlp_width": 8, "patch_size": 4, "image_size": 8}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """24 training images of two classes, and 4 to evaluate; a list of the same with captions; one class alone."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    rows = []
    for split, count in (("train", 12), ("test", 2)):
        for name in ("ant", "cow"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                path = root / split / name / f"{number}.png"
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
                row = {"image": f"{split}/{name}/{number}.png", "caption": f"one {name}", "label": name, "split": split}
                if (split, name, number) == ("test", "cow", 1):
                    row["caption"] = [f"{n} cows" for n in range(6)]
                rows.append(row)
    (root / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def a_config(images, evals=(), ops=OPS, source="folder:{}"):
    data = {"source": source.format(images), "train": {"split": "train", "ops": ops}}
    return {
        "task": {"name": "classify"},
        "model": {**VIT, "pool": "gap", "num_classes": "data"},
        "data": data | {"eval": {"split": "test", "ops": ops}},
        "total": "4 steps",
        "batch_size": 4,
        "optimizer": {"name": "adamw"},
        "schedule": {"name": "constant", "peak": 0.01},
        "evals": dict(evals),
    }


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"type": "knn", "ks": (10, 20, 100, 200)},
            r"config\.evals\.x\.ks: 200 neighbours of 24 training examples \(folder:.* train\); "
            r"choose smaller ks: \(10, 20\)",
        ),
        ({"type": "knn", "leave_one_out": True, "ks": (1, 4)}, r"x\.ks: 4 neighbours of 3 .* ks: \(1,\)"),
        ({"type": "knn", "ks": ()}, r"x\.ks: \(\); give numbers of neighbours"),
        (
            {"type": "knn", "ks": (2,), "features": "featurs"},
            r"x\.features: this task predicts nothing named 'featurs'",
        ),
        ({"type": "classification", "output": "logit"}, r'x\.output: .* nothing named .logit.; did you mean "logits"'),
        (
            {"type": "linear_probe_logistic", "validation_fraction": 0.01},
            r"x\.validation_fraction: 0\.01 of 24 training examples leaves 0 to choose C on",
        ),
        (
            {"type": "linear_probe_logistic", "validation_fraction": 1.5},
            r"x\.validation_fraction: 1\.5 is not a share between 0 and 1",
        ),
        (
            {"type": "linear_probe_logistic", "train_data": {"split": "train[:1]"}},
            r"x\.train_data: a probe needs at least two classes, and .* has 1 in 1 examples",
        ),
        ({"type": "retrieval"}, r"x\.data\.ops: no texts of .*; add tokenize"),
        ({"type": "compositionality"}, r"x\.data\.ops: no texts of .*; add tokenize"),
        (
            {"type": "retrieval", "data": {"source": "captions", "ops": f"{OPS}|tokenize('emoji', 8, most=5)"}},
            r"x\.data: operation tokenize.*: 1 of the 4 images .* up to 6 \(test/cow/1\.png\): write max_texts=6",
        ),
    ],
)
def test_an_evaluator_that_would_fail_fails_before_the_first_step(images, tmp_path, section, message):
    """kNN with ks of 200 failed after the last step on 24 images, and so did every rerun."""
    if section.get("data", {}).get("source") == "captions":
        section = section | {"data": section["data"] | {"source": f"jsonl:{images}/list.jsonl"}}
    with pytest.raises(ConfigError, match=message):
        train.train(a_config(images, {"x": section}), tmp_path / "workdir")
    assert not (tmp_path / "workdir").exists()


def test_data_of_which_nothing_can_be_read_is_no_matter_of_the_model(images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    for path in (tmp_path / "images" / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(TooManyUnreadable, match=r"^folder:.* train: none of the first 24 images can be read: "):
        setup(a_config(tmp_path / "images")).data.batches()


def test_what_fits_is_built(images):
    sections = {
        "knn": {"type": "knn", "ks": (10, 24)},
        "default": {"type": "knn"},
        "pixels": {"type": "knn", "ks": (1,), "features": "pixels"},
        "probe": {"type": "linear_probe_logistic"},
        "mae": {"type": "linear_probe_mae"},
        "test": {"type": "classification"},
    }
    job = setup(a_config(images, sections))
    assert len(evaluations.build(job.model, job.data, job.evals)) == 6


def test_kept_strings_stay_on_the_host(images):
    """keep(...) put strings into the batch that goes to the device: a bare TypeError, before the first step."""
    job = setup(a_config(images, ops=f"keep('caption')|{OPS}", source="jsonl:{}/list.jsonl"))
    assert set(job.model.example_batch) == {"image", "label", "example_mask", "index"}
    with job.data.batches() as batches:
        batch = next(batches)
    assert set(batch["caption"]) <= {"one ant", "one cow"}
    placed = sharding.put_batch(batch, job.model.mesh)
    assert set(placed) == {"image", "label", "example_mask", "index"}
    several = batch | {"names": np.array([("a",), ("b", "c"), (), ("d",)], object)}
    assert set(sharding.put_batch(several, job.model.mesh)) == set(placed)

"""Jobs with class weights, balanced sampling, several labels an image and labelled shards, end to end."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.data import shards
from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.data.errors import DataError
from vitvlm.jobs.evaluation import evaluations
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import setup
from vitvlm.training.resume import Start

OPS = "decode(3)|resize(8)|normalize('unit')"
COLOURS = {"red": 0, "green": 1, "blue": 2}
SETS = [["red"], ["green"], ["blue", "red"], [], ["red", "green", "blue"], ["green", "blue"]]
MODEL = dict(name="resnet", num_classes="data", widths=(8,), depths=(1,), layer="basic", stem_width=8)


def picture(names):
    """A square with each of the named channels on."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., [COLOURS[name] for name in names]] = 220
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def listed(folder, labels, **more):
    """A list of images in the colours of their labels, which the first half trains and the rest tests."""
    rows = []
    for i, label in enumerate(labels):
        (folder / f"{i}.png").write_bytes(picture([label] if isinstance(label, str) else label))
        rows.append({"image": f"{i}.png", "label": label, "split": "train" if i < len(labels) // 2 else "test"})
    (folder / "list.jsonl").write_text("".join(json.dumps(row | more) + "\n" for row in rows))
    return f"jsonl:{folder}/list.jsonl"


def a_config(source, evaluator="classification", total="1 steps", **task):
    return {
        "task": {"name": "classify", **task},
        "model": MODEL,
        "data": {"source": source, "train": {"split": "train", "ops": OPS}, "eval": {"split": "test", "ops": OPS}},
        "total": total,
        "batch_size": 6,
        "optimizer": {"name": "adamw"},
        "schedule": {"name": "constant", "peak": 0.03},
        "evals": {"test": {"type": evaluator}},
    }


def test_several_labels_an_image_are_learned_and_judged(tmp_path):
    config = a_config(listed(tmp_path, SETS * 4), "multi_label", "40 steps", loss_kind="sigmoid", label_smoothing=0.05)
    config["accumulate"] = 2
    config["task"]["class_weights"] = "balanced"
    metrics = train.train(config, tmp_path / "workdir")
    assert metrics["test/mAP"] > 0.95 and metrics["test/n"] == 12 and metrics["test/classes"] == 3
    (table,) = (tmp_path / "workdir").rglob("classes.csv")
    rows = list(csv.DictReader(table.open()))
    assert [(row["name"], row["n"]) for row in rows] == [("blue", "6"), ("green", "6"), ("red", "6")]
    logged = [json.loads(line) for line in (tmp_path / "workdir" / "metrics.jsonl").read_text().splitlines()]
    assert any("train/answers_accuracy" in row for row in logged)


def test_several_labels_are_refused_before_the_first_step_where_one_is_meant(tmp_path):
    several = a_config(listed(tmp_path, SETS * 2), "multi_label")
    with pytest.raises(ConfigError, match=r'loss_kind: "softmax" takes one label per image.*set it to "sigmoid"'):
        setup(several)
    several["task"]["loss_kind"] = "sigmoid"
    for kind in ("classification", "knn", "linear_probe_logistic"):
        job = setup(several | {"evals": {"test": {"type": kind}}})
        with pytest.raises(ConfigError, match=f"{kind} takes one label per image, .*set its type to 'multi_label'"):
            evaluations.build(job.model, job.data, job.evals)
    (tmp_path / "one").mkdir()
    job = setup(a_config(listed(tmp_path / "one", ["red", "blue"] * 3), "multi_label"))
    with pytest.raises(ConfigError, match=r"takes lists of labels, and .* has one per image"):
        evaluations.build(job.model, job.data, job.evals)


def test_weights_and_balance_are_said_in_the_log(tmp_path):
    config = a_config(listed(tmp_path, ["red", "red", "red", "blue"] * 2), class_weights={"blue": 3.0})
    config["data"]["balance"] = 1.0
    job = setup(config)
    assert "; class weights blue 3; the other 1 classes 1; from the start" in train.describe(job, Start(None))
    with job.data.batches() as batches:
        assert str(batches.balance) == "balance 1: an epoch is 4 draws (images -> draws: blue 1 -> 2, red 3 -> 2)"


def test_labelled_shards_train_and_are_judged_by_name(tmp_path):
    """The evaluated shard lacks a class and so numbers the others in another way."""
    for split, names in {"train": ["green", "red", "blue"] * 2, "test": ["red", "green"] * 2}.items():
        samples = {f"{i}": {"png": picture([name]), "cls": name.encode()} for i, name in enumerate(names)}
        shards.write(tmp_path / f"{split}.tar.gz", samples)
    config = a_config(f"webdataset:{tmp_path}/train.tar.gz", total="30 steps")
    config["data"]["train"]["split"] = "all"
    config["data"]["class_names"] = {"red": "a red square"}  # in another order than the shards' own names
    config["data"]["eval"] = {"split": "all", "ops": OPS, "source": f"webdataset:{tmp_path}/test.tar.gz"}
    metrics = train.train(config, tmp_path / "workdir")
    assert metrics["test/top1"] == 1 and metrics["test/n"] == 4
    (examples,) = (tmp_path / "workdir").rglob("examples.npz")
    assert set(np.load(examples)["label_name"]) == {"a red square", "green"}


def test_where_labels_are_is_a_field_of_the_data(tmp_path):
    source = listed(tmp_path, ["red", "blue", "red", "blue"], species="yak")
    config = a_config(source)
    config["data"] |= {"label": "label", "label_names": ["blue", "green", "red"]}
    job = setup(config)
    assert job.data.source.label_names == ("blue", "green", "red") and job.data.source.labels.tolist() == [2, 0]
    config["data"]["label"] = "specie"
    with pytest.raises(DataError, match=r"no image has a label in 'specie'; did you mean \"species\"\?"):
        setup(config)
    config["data"] |= {"label": None, "eval": {"split": "train", "ops": OPS, "source": "emoji"}}
    with pytest.raises(DataError, match="is one of"):  # the labelling is that of the list, and emoji are no colours
        job = setup(config)
        evaluations.build(job.model, job.data, job.evals)


def test_several_labels_in_csv_need_a_separator_that_is_asked_for(tmp_path):
    (tmp_path / "list.csv").write_text("image,label\na.png,cat|dog\nb.png,\nc.png, dog \n")
    with pytest.raises(DataError, match=r"'b\.png' has no label, and others have"):
        sources.open(f"csv:{tmp_path}/list.csv", "all")
    opened = sources.open(f"csv:{tmp_path}/list.csv", "all", labelling=sources.Labelling(separator="|"))
    assert opened.multi_label and opened.label_names == ("cat", "dog")
    assert [labels.tolist() for labels in opened.label_sets] == [[0, 1], [], [1]]
    (tmp_path / "list.csv").write_text("image,label\na.png,cat|dog\nb.png,dog\n")
    assert sources.open(f"csv:{tmp_path}/list.csv", "all").label_names == ("cat|dog", "dog")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["cat"], "dog"], r"the label of '0\.png' is a list, and that of '1\.png' is not"),
        ([[], []], "every list of labels is empty"),
        ([["cat"], [["dog"]]], r"line 2: 'label': is not a list of names or numbers"),
        ([["cat"], None], r"'1\.png' has no label, and others have"),
    ],
)
def test_lists_of_labels_that_cannot_be_meant(tmp_path, labels, message):
    rows = [json.dumps({"image": f"{i}.png", "label": label}) for i, label in enumerate(labels)]
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=message):
        sources.open(f"jsonl:{tmp_path}/list.jsonl", "all")


def test_a_mixture_of_lists_goes_by_name(tmp_path):
    for name, labels in {"a": [["red"], []], "b": [["blue", "red"], ["blue"]], "one": ["red", "blue"]}.items():
        (tmp_path / name).mkdir()
        listed(tmp_path / name, labels)
    spec = "+".join(f"1*jsonl:{tmp_path}/{name}/list.jsonl" for name in ("a", "b"))
    mixed = sources.open(f"mix:{spec}", "train")
    assert mixed.multi_label and mixed.label_names == ("red", "blue")
    assert [labels.tolist() for labels in mixed.label_sets] == [[0], [0, 1]]
    assert [mixed[i]["label"].tolist() for i in range(2)] == [[0], [0, 1]]
    with pytest.raises(DataError, match=r"have lists of labels, and those of .*one/list\.jsonl have one each"):
        sources.open(f"mix:{spec}+1*jsonl:{tmp_path}/one/list.jsonl", "train")

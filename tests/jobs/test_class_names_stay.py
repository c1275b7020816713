"""Names of classes stay with a model: in its workdir, in what it is saved as, and when it is trained further."""

import json
import shutil

import jax
import numpy as np
import pytest
from transformers import AutoModelForImageClassification

from tests.jobs import class_folders
from tests.jobs.class_folders import OPS, a_folder
from vitvlm import pretrained
from vitvlm.core.config import ConfigError
from vitvlm.data.errors import DataError
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.evaluation.weights import evaluate_weights
from vitvlm.jobs.training import again, train
from vitvlm.jobs.training import init_from as init_from_lib
from vitvlm.jobs.training.setup import setup

NAMES = ("ant", "bee", "cow")
VIT = dict(name="vit", num_classes="data", pool="cls", width=16, depth=1, heads=2, mlp_width=24, patch_size=4)
MODEL = dict(VIT, image_size=8, scan=False)


def a_config(source, **fields):
    return class_folders.a_config(source, MODEL) | fields


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tmp_path_factory.mktemp("images") / "animals"


@pytest.fixture(scope="module")
def workdir(images, tmp_path_factory):
    """A classifier of ants, bees and cows, after one step."""
    folder = tmp_path_factory.mktemp("trained") / "workdir"
    train.train(a_config(a_folder(images, train=NAMES, test=NAMES)), folder)
    return folder


def test_a_workdir_and_what_it_is_saved_as_hold_the_names(workdir, tmp_path):
    assert json.loads((workdir / "config.json").read_text())["classes"] == list(NAMES)
    loaded = pretrained.load(workdir)
    assert loaded.class_names == NAMES
    for format in ("hf", "timm", "vitvlm"):
        pretrained.save(loaded, tmp_path / format, format=format)
        assert pretrained.load(tmp_path / format).class_names == NAMES, format
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "hf").config
    assert theirs.id2label == dict(enumerate(NAMES)) and theirs.label2id == {"ant": 0, "bee": 1, "cow": 2}
    written = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert written["label_names"] == list(NAMES)
    del written["label_names"]
    for names in ({"labels": list(NAMES)}, {"label_names": {"0": "ant", "2": "cow"}}):
        (tmp_path / "timm" / "config.json").write_text(json.dumps(written | names))
        expected = NAMES if "labels" in names else ("ant", "LABEL_1", "cow")
        assert pretrained.load(tmp_path / "timm").class_names == expected
    (tmp_path / "timm" / "config.json").write_text(json.dumps(written | {"label_names": ["ant", "bee"]}))
    with pytest.raises(pretrained.WeightsError, match=r"2 names of classes, and the head has 3"):
        pretrained.load(tmp_path / "timm")


def test_other_data_is_put_under_the_classes_of_the_workdir(workdir, tmp_path):
    """Its train split is not the model's: it may lack classes, or have others, for a probe."""
    other = a_folder(tmp_path / "other", train=("bee", "dog"), test=("bee", "cow"))
    config = a_config(other)
    config["evals"]["knn"] = {"type": "knn", "ks": (1,), "data": {"split": "train"}, "leave_one_out": True}
    rows = {row.name: row.result for row in evaluate.evaluate(workdir, config=config)}
    assert "3 classes" in rows["test"].protocol and "the data names 2 of them" in rows["test"].protocol
    assert rows["knn"].metrics["top1_k1"] == 1  # of pixels that are equal within a class
    saved = np.load(evaluate.results_folder(workdir, 1) / "test" / "examples.npz")
    assert set(saved["label_name"]) == {"bee", "cow"} and set(saved["label"]) == {1, 2}
    (row,) = evaluate_weights(workdir, tmp_path / "out", ["classification"], config)
    assert "scored within the 2 of the head's 3 classes that the data names" in row.result.protocol
    saved = np.load(evaluate.results_folder(tmp_path / "out", 0) / "classification" / "examples.npz")
    assert set(saved["label_name"]) == {"bee", "cow"} == set(saved["class_names"][saved["label"]])
    with pytest.raises(DataError, match=r"its class 'dog' is none of the training's classes"):
        evaluate.evaluate(
            workdir, ["test"], a_config(other, data={**config["data"], "eval": {"split": "train", "ops": OPS}})
        )


@pytest.fixture
def copied(workdir, images, tmp_path):
    """Copies (images, workdir, config) of that training, with images elsewhere that keep their times, to be changed."""
    shutil.copytree(images, tmp_path / "animals")
    folder = shutil.copytree(workdir, tmp_path / "workdir")
    config = json.loads((folder / "config.json").read_text())
    source = f"folder:{tmp_path / 'animals'}"
    (folder / "config.json").write_text(json.dumps(config | {"data": {**config["data"], "source": source}}))
    return tmp_path / "animals", folder, a_config(source)


def test_a_class_that_was_renamed_keeps_its_label_on_request_only(copied):
    images, folder, config = copied
    for split in ("train", "test"):
        (images / split / "ant").rename(images / split / "zebra")
    said = r"'zebra' is none of .* classes, config\.classes, which a workdir keeps .*config\.data\.class_names="
    with pytest.raises(DataError, match=said):
        train.train(config, folder)
    config["data"]["class_names"] = {"zebra": "ant"}
    said = r"data/class_names/zebra: absent before, 'ant' now.*, and data/class_names with --accept_changed_data$"
    with pytest.raises(ConfigError, match=said):
        train.train(config, folder)
    train.train(config, folder, accept_changed_data=True)
    assert "files are new: zebra/0.png" in (folder / "metrics.jsonl").read_text()
    now = json.loads((folder / "config.json").read_text())
    assert now["classes"] == list(NAMES) and now["data"]["class_names"] == {"zebra": "ant"}
    source = setup(again.going_on(config, folder)).data.source
    labels = dict(zip(source.ids, source.labels.tolist(), strict=True))
    assert (labels["zebra/0.png"], labels["bee/0.png"], labels["cow/0.png"]) == (0, 1, 2)


def test_a_class_that_is_gone_shifts_no_label_and_one_more_is_refused(copied):
    images, folder, config = copied
    shutil.rmtree(images / "train" / "ant")
    with pytest.raises(DataError, match=r"4 files are gone: ant/0\.png.*--accept_changed_data"):
        train.train(config, folder)
    train.train(config, folder, accept_changed_data=True)
    assert json.loads((folder / "config.json").read_text())["classes"] == list(NAMES)
    assert sorted(setup(again.going_on(config, folder)).data.source.labels.tolist()) == [1] * 4 + [2] * 4
    shutil.copytree(images / "train" / "bee", images / "train" / "dog")
    with pytest.raises(DataError, match=r"its class 'dog' is none of the training's classes"):
        train.train(config, folder, accept_changed_data=True)
    with pytest.raises(ConfigError, match=r"batch_size: 4 before, 2 now; classes: "):  # another training
        train.train(config | {"batch_size": 2, "evals": {}}, folder)


def test_an_evaluation_needs_no_training_data(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "workdir")
    source = a_folder(tmp_path / "only", test=NAMES)
    (row,) = evaluate.evaluate(tmp_path / "workdir", changes={"data": {"source": source}})
    assert row.result.metrics["n"] == 12
    changes = {"data": {"source": source, "class_names": {"bee": "bee"}}}
    (row,) = evaluate.evaluate(tmp_path / "workdir", changes=changes)
    assert row.result.metrics["n"] == 12
    changes["data"]["class_names"] = {"wasp": "bee"}  # perhaps one of the training's
    with pytest.raises(ConfigError, match="no split 'train'"):
        evaluate.evaluate(tmp_path / "workdir", changes=changes)
    a_folder(tmp_path / "only", train=NAMES)
    with pytest.raises(ConfigError, match=r"class_names: no class 'wasp' in .* train nor .* test"):
        evaluate.evaluate(tmp_path / "workdir", changes=changes)


def test_a_head_that_is_trained_further_has_the_classes_of_the_job(workdir, tmp_path, caplog):
    trained = pretrained.load(workdir).variables["params"]["head"]
    assert len(np.unique(np.asarray(trained["bias"]))) == 3
    same_number = a_folder(tmp_path / "other", train=("cow", "dog", "ant"), test=("dog",))
    untrained = train.first_state(setup(a_config(same_number)).training)

    def started(state, source, init_from, **fields):
        section = {"path": str(workdir), **init_from}
        return init_from_lib.apply(setup(a_config(source, **fields)).model, section, state).params["head"]

    with pytest.raises(
        DataError, match=r"config\.init_from: its class 'dog' is none of .*'bee'.*first rule .*class_names"
    ):
        started(untrained, same_number, {})
    head = started(untrained, same_number, {"class_names": {"dog": "bee"}})
    np.testing.assert_array_equal(head["bias"], np.asarray(trained["bias"])[[0, 2, 1]])
    fresh = {"rules": (("head/.*", None), (".*", r"\g<0>")), "ignore": ("head/.*",)}
    assert not np.any(started(untrained, same_number, fresh)["kernel"])
    with pytest.raises(ConfigError, match=r"init_from\.class_names: the job has no class 'dgo'; did you mean \"dog\""):
        started(untrained, same_number, {"class_names": {"dgo": "bee"}})

    part = a_folder(tmp_path / "part", train=("cow", "ant"), test=("ant",))
    smaller = jax.tree.map(lambda leaf: leaf[..., :2] if leaf.shape[-1:] == (3,) else leaf, untrained)
    with caplog.at_level("WARNING"):
        head = started(smaller, part, {}, classes=("cow", "ant"))
    np.testing.assert_array_equal(head["bias"], np.asarray(trained["bias"])[[2, 0]])
    np.testing.assert_array_equal(head["kernel"], np.asarray(trained["kernel"])[:, [2, 0]])
    assert "2 of the head's 3 classes are taken; classes matched by name, in another order" in caplog.text


def test_a_teacher_answers_in_the_classes_of_its_student(workdir, tmp_path):
    student = a_config(a_folder(tmp_path / "student", train=("ant", "cow"), test=("ant",)), classes=("cow", "ant"))
    student["task"] = {"name": "classify", "distillation": {"teacher": str(workdir)}}
    teacher = setup(student).model.task.distillation.teacher
    pixels = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    loaded = pretrained.load(workdir)
    expected = loaded.model.apply(loaded.variables, pixels).logits
    np.testing.assert_allclose(teacher.logits(teacher.variables, pixels), np.asarray(expected)[:, [2, 0]], atol=1e-6)
    other = a_config(a_folder(tmp_path / "more", train=("ant", "dog"), test=("ant",)), task=student["task"])
    with pytest.raises(
        DataError, match=r"config\.task\.distillation: its class 'dog' is none of the teacher's classes"
    ):
        setup(other)
    other["task"]["distillation"]["class_names"] = {"dog": "bee"}
    assert setup(other).model.task.distillation.teacher.classes == (0, 1)

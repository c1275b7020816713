"""Classes are names: whatever a source's own numbers for them are, a perfect model scores 1.0."""

import csv
import functools
import io
import json
import tarfile

import numpy as np
import pytest

from tests.jobs import class_folders
from tests.jobs.class_folders import COLOURS, OPS, a_folder, picture
from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.data.errors import DataError
from vitvlm.jobs.evaluation import evaluations
from vitvlm.jobs.setup.classes import Head, find
from vitvlm.jobs.setup.data import DataSetup
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.jobs.training.setup import setup
from vitvlm.tasks import Classify, Encode

CLASSIFIER = dict(name="resnet", num_classes="data", widths=(8,), depths=(1,), layer="basic", stem_width=8)
ENCODER = dict(CLASSIFIER, num_classes=0)


def a_list(root, kind, **classes):
    """The same as a list; rows of test come first, so that no order is by chance the right one."""
    rows = [
        {"image": picture(root, f"{split}/{name}{number}.png", name), "label": name, "split": split}
        for split in ("test", "train")
        for name in classes[split]
        for number in range(4)
    ]
    file = root / f"list.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(row.values()) for row in rows]
        file.write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
    return f"{kind}:{file}"


def a_config(source, model=CLASSIFIER, evals=None, **data):
    return class_folders.a_config(source, model, evals, **data)


def perfect(*names):
    """Predictions of a model that knows the colours of these classes, in the order of its head; features too."""
    colours = np.array([COLOURS[name] for name in names]) / 255

    def predict(name, variables, batch):
        pixel = batch["image"].mean(axis=(1, 2))
        if name == "features":
            return {"features": pixel}
        return {name: -np.square(pixel[:, None] - colours).sum(axis=2)}

    return predict


def scored(config, predict, tmp_path):
    """Returns {evaluation: result} of a job's evaluators; a model without classes is one that came from elsewhere."""
    section, data = dict(config["model"]), DataSetup.of(config)
    if section["num_classes"]:
        model = setup(config).model
    else:
        model = ModelSetup.around(Encode(models.build(section.pop("name"), **section)), None, config, data)
    built = evaluations.build(model, data, config["evals"])
    return {each.name: each.evaluator.run(predict, {}, tmp_path / each.name) for each in built}


TRAIN, TEST = ("ant", "bee", "cow"), ("ant", "cow")


@pytest.mark.parametrize("kind", ["folder", "two lists", "mix", "own data"])
def test_a_class_that_a_split_lacks_shifts_no_label(kind, tmp_path):
    config = a_config(a_folder(tmp_path / "images", train=TRAIN, test=TEST))
    if kind == "mix":
        more = a_folder(tmp_path / "more", train=TRAIN, test=["cow"])
        config = a_config(f"mix:{config['data']['source']}+2*{more}")
    if kind == "two lists":
        whole = a_list(tmp_path / "whole", "jsonl", train=TRAIN, test=TRAIN)
        part = a_list(tmp_path / "part", "jsonl", train=TEST, test=TEST)
        config = a_config(whole, eval={"split": "test", "ops": OPS, "source": part})
    if kind == "own data":
        own = a_list(tmp_path / "own", "csv", train=TEST, test=TEST)
        config["evals"]["test"]["data"] = {"source": own}
    (result,) = scored(config, perfect(*TRAIN), tmp_path).values()
    assert result.metrics["top1"] == 1
    assert "3 classes" in result.protocol and "the data names 2 of them" in result.protocol
    saved = np.load(tmp_path / "test" / "examples.npz")
    assert set(saved["label_name"]) == set(saved["prediction_name"]) == set(TEST)
    assert saved["label_name"].tolist() == [TRAIN[label] for label in saved["label"]]
    assert (
        saved["top_probability"].shape == (*saved["label"].shape, 3) and (saved["top_probability"][:, 0] > 1 / 3).all()
    )


LEARNERS = {
    "knn": {"type": "knn", "ks": (3,)},
    "mae": {"type": "linear_probe_mae", "epochs": 100, "base_learning_rate": 1000.0, "warmup_epochs": 1},
    "logistic": {"type": "linear_probe_logistic", "sweep": (10.0,)},
}


@pytest.mark.parametrize("name", LEARNERS)
def test_neighbours_and_probes_learn_names(name, tmp_path):
    source = a_folder(tmp_path / "images", train=TRAIN, test=TEST)
    results = scored(a_config(source, ENCODER, {name: LEARNERS[name]}), perfect(), tmp_path)
    metrics = results[name].metrics
    assert metrics["top1_k3" if name == "knn" else "top1"] == 1
    assert set(np.load(tmp_path / name / "examples.npz")["label_name"]) == set(TEST)


def test_probes_learn_the_classes_of_their_own_training_data(tmp_path):
    """A pre-training on other classes, or on none, has nothing to do with those of a probe."""
    pretraining = a_folder(tmp_path / "pretraining", train=("dog", "bee"), test=("dog", "bee"))
    own = {"source": a_folder(tmp_path / "own", train=TRAIN, test=TEST)}
    evals = {"knn": {**LEARNERS["knn"], "data": own, "train_data": own}}
    results = scored(a_config(pretraining, ENCODER, evals), perfect(), tmp_path)
    assert results["knn"].metrics["top1_k3"] == 1
    del evals["knn"]["train_data"]
    with pytest.raises(
        DataError, match=r"no class of it \('ant', 'cow'\) is one of the data that it lear.*'bee', 'dog'"
    ):
        scored(a_config(pretraining, ENCODER, evals), perfect(), tmp_path)


@pytest.mark.parametrize("kind", ["folder", "jsonl", "csv"])
def test_a_class_that_was_not_trained_is_an_error_that_lists_it(kind, tmp_path):
    split = dict(train=("ant", "bee"), test=("ant", "cow", "dog", "bee"))
    make = a_folder if kind == "folder" else functools.partial(a_list, kind=kind)
    config = a_config(make(tmp_path / "images", **split))
    message = (
        r"its classes 'cow', 'dog' are none of the training's classes, .*\('ant', 'bee'\); say .*config\.data\.class_n"
    )
    with pytest.raises(DataError, match=message):
        scored(config, perfect("ant", "bee"), tmp_path)
    other = a_config(a_folder(tmp_path / "cases", train=("ant", "bee"), test={"Ant": "ant", "bee": "bee"}))
    with pytest.raises(DataError, match=r"its class 'Ant' is none of .*: 'Ant' may be 'ant'"):
        scored(other, perfect("ant", "bee"), tmp_path)


@pytest.mark.parametrize("as_file", [False, True])
def test_names_by_hand(as_file, tmp_path):
    names = {"Kuh": "cow", "Biene": "bee"}
    source = a_folder(tmp_path / "images", train=TRAIN, test={"ant": "ant", "Biene": "bee", "Kuh": "cow"})
    (tmp_path / "names.json").write_text(json.dumps(names))
    config = a_config(source, class_names=str(tmp_path / "names.json") if as_file else names)
    (result,) = scored(config, perfect(*TRAIN), tmp_path).values()
    assert result.metrics["top1"] == 1
    assert "2 classes named by config.data.class_names ('Biene' = 'bee', 'Kuh' = 'cow')" in result.protocol
    assert setup(config).config["data"]["class_names"] == names  # the workdir needs no file
    config["data"]["class_names"] = {**names, "Katze": "cow"}
    with pytest.raises(ConfigError, match=r"class_names: no class 'Katze' in .* train nor .* test; .*Biene"):
        setup(config)
    config["data"]["class_names"] = str(tmp_path / "nowhere.json")
    with pytest.raises(ConfigError, match=r"class_names: .*nowhere\.json: No such file"):
        setup(config)


def test_several_classes_become_one(tmp_path):
    source = a_folder(tmp_path / "images", train=("ant", "bee", "cow"), test=TEST)
    config = a_config(source, class_names={"ant": "insect", "bee": "insect"})
    job = setup(config)
    assert job.model.head.names == ("insect", "cow") and job.config["classes"] == ["insect", "cow"]
    assert sorted(job.data.source.labels.tolist()) == [0] * 8 + [1] * 4
    assert {job.data.source[i]["label"] for i in range(12) if job.data.source[i]["id"].startswith("bee/")} == {0}
    (result,) = scored(config, perfect("ant", "cow"), tmp_path).values()
    assert result.metrics["top1"] == 1


def test_the_order_and_more_classes_may_be_given(tmp_path):
    config = a_config(a_folder(tmp_path / "images", train=TRAIN, test=TEST)) | {"classes": ("dog", "cow", "bee", "ant")}
    job = setup(config)
    assert job.model.task.model.num_classes == 4
    source = job.data.source
    with_ids = {source.ids[i].split("/")[0]: int(source.labels[i]) for i in range(len(source))}
    assert with_ids == {"cow": 1, "bee": 2, "ant": 3}
    (result,) = scored(config, perfect("dog", "cow", "bee", "ant"), tmp_path).values()
    assert result.metrics["top1"] == 1
    with pytest.raises(DataError, match=r"its class 'ant' is none of the training's classes"):
        setup(config | {"classes": ("cow", "bee")})
    with pytest.raises(ConfigError, match=r"num_classes: 7, but config\.classes names 4 classes; set it to 4"):
        setup(config | {"model": {**CLASSIFIER, "num_classes": 7}})


def test_an_unlabelled_source_says_so(tmp_path):
    row = {"image": picture(tmp_path, "a.png", "ant"), "caption": "x"}
    (tmp_path / "list.jsonl").write_text(json.dumps(row) + "\n")
    source = f"jsonl:{tmp_path}/list.jsonl"
    for classes in ("data", 3, 0):
        with pytest.raises(DataError, match=r"classify needs .* jsonl:.* has no labels: add a 'label' to each row"):
            setup(a_config(source, {**CLASSIFIER, "num_classes": classes}, train={"split": "all", "ops": OPS}))
    config = a_config(source, ENCODER, {"knn": {"type": "knn", "ks": (1,)}})
    config["data"] |= {"train": {"split": "all", "ops": OPS}, "eval": {"split": "all", "ops": OPS}}
    with pytest.raises(DataError, match=r"config\.evals\.knn \(knn\) needs classes, and jsonl:.* all has no labels"):
        scored(config, perfect(), tmp_path)
    config["evals"] = {"features": {"type": "features"}}
    scored(config, perfect(), tmp_path)
    assert set(np.load(tmp_path / "features" / "features.npz")) == {"features", "index", "id"}


def test_a_head_is_needed_to_be_scored(tmp_path):
    source = a_folder(tmp_path / "images", train=TRAIN, test=TEST)
    with pytest.raises(ConfigError, match=r"config\.evals\.test: classification scores a head, and this"):
        scored(a_config(source, ENCODER), perfect(), tmp_path)


def weights_on(names, data, predict, tmp_path, class_names=None, count=None, **fields):
    """The result of published weights whose head has these classes (None: `count` without a name) on folders `data`."""
    source = a_folder(tmp_path / "images", test=data)
    section = {"type": "classification", **fields}
    config = a_config(
        source, evals={"test": section}, train={"split": "test", "ops": OPS}, class_names=class_names or {}
    )
    count = count or len(names)
    task = Classify(models.build(**{**CLASSIFIER, "num_classes": count}))
    data = DataSetup.of(config)
    model = ModelSetup.around(task, Head(names, count, "the weights' classes", published=True), config, data)
    (built,) = evaluations.build(model, data, config["evals"])
    return built.evaluator.run(predict, {}, tmp_path / "out")


def test_weights_with_more_classes_than_the_data_are_scored_within_the_datas(tmp_path):
    names = ("dog", "cow", "bee", "ant")
    blind = perfect("dog", "cow", "bee", "ant")

    def predict(name, variables, batch):
        """Takes everything for a bee, and only then looks."""
        return {name: blind(name, variables, batch)[name] + np.array([0, 0, 100, 0])}

    result = weights_on(names, ("ant", "cow", "dog"), predict, tmp_path)
    assert result.metrics["top1"] == 1
    assert "classification, 3 classes" in result.protocol
    assert "scored within the 3 of the head's 4 classes that the data names" in result.protocol
    assert "classes matched by name, in another order" in result.protocol
    saved = np.load(tmp_path / "out" / "examples.npz")
    assert (
        saved["label_name"].tolist()
        == saved["class_names"][saved["label"]].tolist()
        == saved["prediction_name"].tolist()
    )
    assert (saved["probabilities"].argmax(axis=1) == saved["label"]).all()
    rows = list(csv.DictReader((tmp_path / "out" / "classes.csv").open()))
    assert [(row["class"], row["name"], row["accuracy"]) for row in rows] == [
        ("0", "dog", "1.0000"), ("1", "cow", "1.0000"), ("3", "ant", "1.0000"),
    ]  # fmt: skip
    everything = weights_on(names, ("ant", "cow", "dog"), predict, tmp_path / "all", within="head")
    assert everything.metrics["top1"] == 0 and "4 classes" in everything.protocol
    assert "the data names 3 of them" in everything.protocol


def test_names_that_are_written_otherwise_are_found_and_said(tmp_path):
    names = ("Ant", "honey bee, bee, Apis", "milk cow")
    data = {"milk-Cow": "cow", "ant": "ant", "bee": "bee"}
    result = weights_on(names, data, perfect("ant", "bee", "cow"), tmp_path)
    assert result.metrics["top1"] == 1
    assert "2 classes matched ignoring case, _ and - ('ant' = 'Ant', 'milk-Cow' = 'milk cow')" in result.protocol
    assert "1 classes matched by a synonym between commas ('bee' = 'honey bee, bee, Apis')" in result.protocol


def test_weights_that_share_no_name_with_the_data_ask_for_a_mapping(tmp_path):
    names, data = ("Ameise", "Biene"), ("ant", "bee")
    message = (
        r"test: no class of it \('ant', 'bee'\) is one of the weights' classes \('Ameise', 'Biene'\); say which class "
        r"each is by config\.data\.class_names=\{class: class of the weights\}"
    )
    with pytest.raises(DataError, match=message):
        weights_on(names, data, perfect("ant", "bee"), tmp_path / "without")
    result = weights_on(names, data, perfect("ant", "bee"), tmp_path, {"bee": "Biene", "ant": "Ameise"})
    assert result.metrics["top1"] == 1 and "2 classes named by config.data.class_names" in result.protocol


def test_weights_without_names(tmp_path):
    result = weights_on(None, ("ant", "bee"), perfect("ant", "bee"), tmp_path / "as many", count=2)
    assert result.metrics["top1"] == 1
    assert "the weights' classes have no names, taken to be in the data's order: UNVERIFIED" in result.protocol
    with pytest.raises(DataError, match=r"2 classes, and the weights' classes are 3 without a name: say .*class_names"):
        weights_on(None, ("ant", "bee"), perfect("cow", "bee", "ant"), tmp_path / "more", count=3)
    by_hand = {"ant": "LABEL_2", "bee": "LABEL_1"}
    result = weights_on(None, ("ant", "bee"), perfect("cow", "bee", "ant"), tmp_path, by_hand, count=3)
    assert result.metrics["top1"] == 1 and "UNVERIFIED" not in result.protocol


def test_weights_without_names_on_classes_that_are_numbers():
    """Folders 0, 1, 10, 2 … are in the order of texts, which the weights' training may or may not have followed."""
    few, many = ([str(number) for number in range(count)] for count in (10, 11))
    places, note = find(few, None, 10, "folder", "the weights' classes", "")
    assert places == list(range(10)) and "UNVERIFIED" in note
    with pytest.raises(DataError, match=r"which is which cannot be told; say it, such as \{'0': 'LABEL_0'\}"):
        find(sorted(many), None, 11, "folder", "the weights' classes", "say it")
    by_hand = [f"LABEL_{number}" for number in sorted(many)]
    assert find(by_hand, None, 11, "folder", "the weights' classes", "")[0] == [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]


def test_weights_that_name_two_classes_alike(tmp_path):
    """As ImageNet's crane, the bird and the machine."""
    names = ("ant", "cow", "ant")
    with pytest.raises(DataError, match=r"'ant' could be 'ant \(class 0\)' or 'ant \(class 2\)'"):
        weights_on(names, ("ant", "cow"), perfect("bee", "cow", "ant"), tmp_path / "unclear")
    by_hand = {"ant": "ant (class 2)"}
    assert weights_on(names, ("ant", "cow"), perfect("bee", "cow", "ant"), tmp_path, by_hand).metrics["top1"] == 1


def test_streamed_and_multi_label_sources_are_put_under_the_classes_too(tmp_path):
    """Trained on streamed shards whose classes are in another order; lists of labels keep their names as well."""
    members = {
        f"{number}{end}": content
        for number, name in enumerate(("cow", "ant", "bee"))
        for end, content in ((".png", (tmp_path / picture(tmp_path, "one.png", name)).read_bytes()), (".cls", name))
    }
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    source = sources.placed(sources.open(f"webdataset:{tmp_path}/0.tar", "all"), ("dog", "cow", "bee", "ant"), "x", "y")
    expected = [1, 3, 2]
    assert source.streams and source.labels.tolist() == expected
    assert [source[i]["label"] for i in range(3)] == [each["label"] for each in source.first()] == expected
    assert [record.found["label"] for record in source.read(0)] == expected
    offset = [record.offset for record in source.read(0)][1]
    assert [record.found["label"] for record in source.read_at(0, [offset])] == [3]
    offered = {name for name in dir(sources.webdataset.TarSource) if not name.startswith("_")}
    assert offered <= set(dir(source)), "what streams ask of a source"

    rows = [{"image": "one.png", "label": ["cow", "bee"]}, {"image": "two.png", "label": []}]
    picture(tmp_path, "two.png", "bee")
    (tmp_path / "several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    several = sources.open(f"jsonl:{tmp_path}/several.jsonl", "all")
    under = sources.placed(several, ("dog", "cow", "ant", "bee"), "x", "y")
    assert (
        [each.tolist() for each in under.label_sets] == [under[i]["label"].tolist() for i in range(2)] == [[1, 3], []]
    )
    merged = sources.renamed(several, {"cow": "animal", "bee": "animal"})
    assert merged.label_names == ("animal",) and [each.tolist() for each in merged.label_sets] == [[0], []]


def test_mixtures_of_lists_of_labels_and_of_what_has_none(tmp_path):
    def rows(name, labels):
        listed = [{"image": picture(tmp_path, f"{name}{i}.png", "ant"), **row} for i, row in enumerate(labels)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
        return f"jsonl:{tmp_path}/{name}.jsonl"

    first = rows("first", [{"label": ["cow", "ant"]}, {"label": []}])
    second = rows("second", [{"label": ["bee"]}, {"label": ["dog", "cow"]}])
    mixed = sources.open(f"mix:{first}+{second}", "all")
    assert mixed.multi_label and mixed.label_names == ("ant", "cow", "bee", "dog")
    assert [labels.tolist() for labels in mixed.label_sets] == [[0, 1], [2], [], [1, 3]]
    assert [mixed[i]["label"].tolist() for i in range(4)] == [[0, 1], [2], [], [1, 3]]
    one, none = rows("one", [{"label": "cow"}]), rows("none", [{}])
    with pytest.raises(
        DataError, match=r"the images of jsonl:.*first\.jsonl have lists of labels, and those of jsonl:.*one"
    ):
        sources.open(f"mix:{first}+{one}", "all")
    with pytest.raises(
        DataError, match=r"config needs classes: jsonl:.*none\.jsonl has no labels, and others of the mix"
    ):
        sources.check_classes(sources.open(f"mix:{one}+{none}", "all"), "config")

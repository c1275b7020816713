"""Labels in WebDataset tars: KEY.cls or the JSON's field, a name or an index, one or several."""

import json
import pickle

import numpy as np
import pytest
import shards

from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.data.batches import eval_batches, train_batches
from vitvlm.data.errors import DataError, TooManyUnreadable, UnreadableImage
from vitvlm.data.sources import Labelling

OPS = "decode|resize((6, 5))|normalize"


def write(folder, labels, form):
    """One shard for every three labels; `form` makes a sample's label members."""
    folder.mkdir(exist_ok=True)
    for first in range(0, len(labels), 3):
        samples = {
            f"{i}": {**shards.sample(i), **form(label)} for i, label in enumerate(labels[first : first + 3], first)
        }
        shards.write(folder / f"{first // 3}.tar", samples)
    return folder


def cls(label):
    return {} if label is None else {"cls": str(label).encode()}


def field(name):
    return lambda label: {} if label is None else {"json": json.dumps({name: label, "other": 1}).encode()}


def opened(folder, **labelling):
    return sources.open(f"webdataset:{folder}/*.tar", "all", labelling=Labelling(**labelling))


def told(source):
    """The names of the classes of all examples, by `labels` and by the examples."""
    by_labels = [source.label_names[label] for label in source.labels]
    assert [source.label_names[source[i]["label"]] for i in range(len(source))] == by_labels
    assert source.labels.dtype == np.int32
    return by_labels


@pytest.mark.parametrize("form", [cls, field("label")])
def test_names_are_collected_in_order(tmp_path, form):
    source = opened(write(tmp_path, ["dog", "cat", "emu", "cat"], form))
    assert source.label_names == ("cat", "dog", "emu") and told(source) == ["dog", "cat", "emu", "cat"]
    assert "classes collected in a pass over the shards" in str(source)
    with train_batches(source, OPS, 4, seed=0, shuffle_buffer=2) as batches:
        batch = next(batches)
    assert sorted(batch["label"]) == [0, 0, 1, 2]
    assert np.concatenate([b["label"] for b in eval_batches(source, OPS, 2)]).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("form", [cls, field("label")])
def test_indices_are_ordered_as_numbers(tmp_path, form):
    source = opened(write(tmp_path, [10, 2, 0, 2], form))
    assert source.label_names == ("0", "2", "10") and told(source) == ["10", "2", "0", "2"]


@pytest.mark.parametrize("labels", [["dog", "cat", "dog"], [1, 0, 1], ["dog", 0, 1]])
@pytest.mark.parametrize("classes", [("cat", "dog", "emu"), "classes.txt", "classes.json", "id2label.json"])
def test_given_classes_need_no_pass_over_the_shards(tmp_path, labels, classes):
    if isinstance(classes, str):
        names = ["cat", "dog", "emu"]
        content = {"classes.json": json.dumps(names), "id2label.json": json.dumps(dict(enumerate(names)))}
        (tmp_path / classes).write_text(content.get(classes, "cat\ndog\nemu\n\n"))
        classes = str(tmp_path / classes)
    source = opened(write(tmp_path / "set", labels, cls), label_names=classes)
    with train_batches(source, OPS, 3, seed=0) as batches:
        assert sorted(next(batches)["label"]) == sorted(1 if label in ("dog", 1) else 0 for label in labels)
    assert source.label_names == ("cat", "dog", "emu") and "_index" not in source.__dict__
    assert told(source) == ["dog" if label in ("dog", 1) else "cat" for label in labels]


def test_a_field_is_chosen_and_the_others_stay_texts(tmp_path):
    folder = write(tmp_path, ["dog", "cat"], lambda label: {**cls("wrong"), **field("species")(label)})
    source = opened(folder, field="species")
    assert told(source) == ["dog", "cat"] and source[0]["species"] == "dog" and source[0]["other"] == "1"
    assert opened(folder).label_names == ("wrong",)
    assert opened(folder, field="other").label_names == ("1",)
    assert opened(folder, field="").label_names == () and opened(folder, field="")[1]["label"] == 0
    with pytest.raises(DataError, match=r"has a label in 'genus'; it has .*\.json, \.cls, species, other"):
        opened(folder, field="genus")


def test_unlabelled_shards_stay_so_and_make_no_pass(tmp_path):
    source = opened(shards.folder(tmp_path / "set", [2]))
    assert source.label_names == () and source[0]["label"] == 0 and source.labels.tolist() == [0, 0]
    assert str(source) == "1 shards, no labels"


def test_what_has_no_label_or_another_is_counted_and_named(tmp_path):
    folder = write(tmp_path, ["dog", None, "cat", "yak", 7, 1], cls)
    source = opened(folder, label_names=("cat", "dog"))
    assert source.labels.tolist() == [1, -1, 0, -1, -1, 1]
    passed = eval_batches(source, OPS, 6, max_unreadable_fraction=0.6)
    (batch,) = passed
    assert batch["example_mask"].tolist() == [1, 0, 1, 0, 0, 1] and batch["label"].tolist() == [1, 0, 0, 0, 0, 1]
    assert passed.bad.names == {
        "0.tar/1": "has no label in 'cls', and others have",
        "1.tar/3": "label 'yak' is none of the 2 classes; there is: cat, dog",
        "1.tar/4": "label '7' is none of the 2 classes; there is: cat, dog",
    }
    with (
        train_batches(source, OPS, 6, seed=0, max_unreadable_fraction=0.1, bad_after=6) as batches,
        pytest.raises(TooManyUnreadable, match="3 of 6 images"),
    ):
        next(batches)
    assert opened(folder).label_names == ("cat", "dog", "yak", "1", "7")


def test_several_labels(tmp_path):
    source = opened(write(tmp_path, [["dog", "cat"], [], ["emu"], ["cat", "cat"]], field("label")))
    assert source.multi_label and source.label_names == ("cat", "dog", "emu")
    assert [label.tolist() for label in source.label_sets] == [[0, 1], [], [2], [0]]
    assert [source[i]["label"].tolist() for i in range(4)] == [[0, 1], [], [2], [0]]
    with pytest.raises(DataError, match="several labels each"):
        _ = source.labels
    mixed = opened(write(tmp_path, [["dog"], "cat", ["cat"]], field("label")))
    with pytest.raises(UnreadableImage, match="its label is not a list, and others are"):
        mixed[1]


def test_a_worker_has_the_same_classes(tmp_path):
    source = opened(write(tmp_path, ["dog", "cat", "emu"], cls))
    assert pickle.loads(pickle.dumps(source)).label_names == source.label_names


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("a", "a"), "names 'a' twice"),
        ("no.txt", "label_names=no.txt: cannot be read"),
        ((1, 2), "is not a list of names"),
    ],
)
def test_classes_that_cannot_be_meant(tmp_path, classes, message):
    with pytest.raises(ConfigError, match=message):
        opened(write(tmp_path, ["a"], cls), label_names=classes)


def test_options_of_other_kinds_are_refused(tmp_path):
    folder = write(tmp_path, ["a"], cls)
    with pytest.raises(ConfigError, match="label_separator is for csv"):
        opened(folder, separator="|")
    with pytest.raises(ConfigError, match="label, label_separator and label_names are for csv, jsonl, webdataset"):
        sources.open("emoji", "train", labelling=Labelling(field="group"))

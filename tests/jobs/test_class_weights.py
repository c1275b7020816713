"""Class weights of a config against scikit-learn, and what is wrong with a name or a number."""

import json

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.data.errors import DataError
from vitvlm.jobs.setup import class_weights

LABELS = ["dog"] * 5 + ["cat"] * 2 + ["emu"] * 3


def listed(folder, labels):
    rows = [
        json.dumps({"image": f"{i}.png", **({} if label is None else {"label": label})})
        for i, label in enumerate(labels)
    ]
    (folder / "list.jsonl").write_text("\n".join(rows))
    return sources.open(f"jsonl:{folder}/list.jsonl", "all")


def resolve(given, source):
    return class_weights.resolve(given, source.label_names, source)


def test_balanced_is_that_of_scikit_learn(tmp_path):
    source = listed(tmp_path, LABELS)
    wanted = compute_class_weight("balanced", classes=np.array(source.label_names), y=LABELS)
    np.testing.assert_allclose(resolve("balanced", source), wanted)


def test_of_several_labels_every_label_counts(tmp_path):
    source = listed(tmp_path, [["dog", "cat"], ["dog"], [], ["dog"]])
    assert class_weights.label_counts(source).tolist() == [1, 3]
    np.testing.assert_allclose(resolve("balanced", source), [4 / 2, 4 / 6])


def test_by_name_and_what_is_said_of_it(tmp_path):
    source = listed(tmp_path, LABELS)
    weights = resolve({"emu": 2.5}, source)
    assert weights == (1, 1, 2.5)
    assert class_weights.describe(weights, source.label_names) == "class weights emu 2.5; the other 2 classes 1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dgo": 2.0}, r"no class 'dgo'; did you mean \"dog\"\?"),
        ({"dog": -1.0}, "the weight of 'dog' is a number of 0 or more, not -1.0"),
        ({"dog": "2"}, "not '2'"),
        ("balance", "'balance' is neither \"balanced\" nor"),
    ],
)
def test_mistakes(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        resolve(given, listed(tmp_path, LABELS))


def test_a_class_without_an_image_has_no_balanced_weight(tmp_path):
    source = sources.Subset(listed(tmp_path, LABELS), range(7), "some of it")
    with pytest.raises(ConfigError, match="no weight for 'emu': some of it has no image of it"):
        resolve("balanced", source)


def test_without_labels_there_is_nothing_to_weigh(tmp_path):
    with pytest.raises(DataError, match="has no labels"):
        resolve("balanced", listed(tmp_path, [None, None]))

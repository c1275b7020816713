"""Mean average precision and F1 of several labels an example, against scikit-learn."""

import csv
import warnings

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from vitvlm import evaluation
from vitvlm.evaluation import multi_label

S = 5
GIVEN = {"example_id": "image {}".format, "matched": "by hand"}


def data(n=60, seed=0, without=()):
    """Images whose logits know something of their labels, and the matrix that gives the logits."""
    rng = np.random.default_rng(seed)
    labels = rng.uniform(size=(n, S)) < [0.5, 0.3, 0.1, 0.2, 0.4]
    labels[:, list(without)] = False
    labels[0] = False  # an example of none of the classes
    images = (4 * (labels + rng.normal(size=(n, S)))).round() / 4  # exact in float32; some scores tie
    return images.reshape(n, 1, S, 1), labels, {"logits": np.eye(S) * 2 - 0.25}


def batches(images, labels, size=7):
    def several():
        for batch in toy.passes(images, np.arange(len(images)), size)():
            rows = labels[batch.pop("label")].astype(np.float32)
            yield batch | {"labels": rows}

    return several


def run(tmp_path, images, labels, variables, **fields):
    names = ("ant", "bee", "cow", "dog", "emu")
    evaluator = evaluation.build("multi_label", fields, batches=batches(images, labels), label_names=names, **GIVEN)
    return evaluator.run(toy.predict, variables, tmp_path)


def test_figures_are_those_of_scikit_learn(tmp_path):
    images, labels, variables = data()
    result = run(tmp_path, images, labels, variables, threshold=0.6)
    logits = images.reshape(-1, S) @ variables["logits"]
    probability = 1 / (1 + np.exp(-logits))
    figures = result.metrics
    wanted = sklearn_metrics.average_precision_score(labels, logits, average=None)
    assert figures["mAP"] == pytest.approx(wanted.mean(), abs=1e-9)
    for kind in ("micro", "macro"):
        wanted_f1 = sklearn_metrics.f1_score(labels, probability > 0.6, average=kind)
        assert figures[f"{kind}_f1"] == pytest.approx(wanted_f1, abs=1e-9)
    terms = -np.log(np.where(labels, probability, 1 - probability))
    assert figures["loss"] == pytest.approx(terms.sum(axis=1).mean(), rel=1e-4)
    assert figures["n"] == 60 and figures["classes"] == S
    assert result.protocol.endswith("; by hand")
    assert figures["mAP_low"] < figures["mAP"] < figures["mAP_high"]
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [row["name"] for row in rows] == ["ant", "bee", "cow", "dog", "emu"]
    assert [float(row["average_precision"]) for row in rows] == pytest.approx(wanted, abs=1e-4)
    assert [int(row["n"]) for row in rows] == labels.sum(axis=0).tolist()
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(labels, probability > 0.6)
    for name, each in {"precision": precision, "recall": recall, "f1": f1}.items():
        assert [float(row[name]) for row in rows] == pytest.approx(each, abs=1e-4)
    with np.load(tmp_path / "examples.npz") as saved:
        np.testing.assert_array_equal(saved["labels"], labels)
        np.testing.assert_allclose(saved["probability"], probability, rtol=1e-4)
        assert saved["id"].tolist() == [f"image {i}" for i in range(60)] and saved["label_names"][1] == "bee"


def test_classes_that_no_example_has_do_not_count_and_that_is_said(tmp_path):
    images, labels, variables = data(without=(1, 3))
    result = run(tmp_path, images, labels, variables)
    logits, some = images.reshape(-1, S) @ variables["logits"], [0, 2, 4]
    wanted = sklearn_metrics.average_precision_score(labels[:, some], logits[:, some])
    assert result.metrics["mAP"] == pytest.approx(wanted) and result.metrics["classes"] == 3
    assert "mean of 3 classes' average precision (2 more are in no example)" in result.protocol
    assert [row["average_precision"] for row in csv.DictReader((tmp_path / "classes.csv").open())][1] == ""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=20))
def test_average_precision_of_ties(pairs):
    scores, labels = np.array([[s] for s, _ in pairs], float), np.array([[y] for _, y in pairs])
    labels[0] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = sklearn_metrics.average_precision_score(labels[:, 0], scores[:, 0])
    found, _ = multi_label.average_precisions(scores, labels, resamples=2)
    assert found[0] == pytest.approx(wanted)


def test_the_interval_is_that_of_resampling_with_scikit_learn():
    images, labels, variables = data(40)
    logits = images.reshape(-1, S) @ variables["logits"]
    _, interval = multi_label.average_precisions(logits, labels, seed=3, resamples=200)
    rng, means = np.random.default_rng(9), []
    for _ in range(200):
        chosen = rng.integers(40, size=40)
        some = labels[chosen].any(axis=0)
        means.append(sklearn_metrics.average_precision_score(labels[chosen][:, some], logits[chosen][:, some]))
    np.testing.assert_allclose(interval, np.quantile(means, [0.025, 0.975]), atol=0.03)


def test_resamples_in_chunks_are_the_same_figures(monkeypatch):
    images, labels, variables = data(40)
    logits = images.reshape(-1, S) @ variables["logits"]
    wanted = multi_label.average_precisions(logits, labels, resamples=50)
    monkeypatch.setattr(multi_label, "_AT_ONCE", 40 * 7)
    found = multi_label.average_precisions(logits, labels, resamples=50)
    np.testing.assert_allclose(found[1], wanted[1])


def test_without_any_label_there_is_no_figure(tmp_path):
    images, labels, variables = data(8)
    with pytest.raises(ValueError, match="no evaluated example has a label"):
        run(tmp_path, images, np.zeros_like(labels), variables)

import csv

import numpy as np
import pytest
from sklearn import metrics as sk
from toy import NAMES, blobs, passes, predict

from vitvlm import evaluation
from vitvlm.core.config import ConfigError
from vitvlm.evaluation import answers, base, classification, knn


@pytest.fixture
def logits_set():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(53, 1, 6, 1)).astype(np.float32)
    labels = rng.integers(9, size=53)
    return images, labels, {"logits": rng.normal(size=(6, 9)).astype(np.float32)}


def test_classification_equals_scikit_learn(logits_set, tmp_path):
    images, labels, variables = logits_set
    logits = np.stack([image.ravel() @ variables["logits"] for image in images])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    result = evaluation.build("classification", {}, batches=passes(images, labels), label_names=NAMES).run(
        predict, variables, tmp_path
    )
    assert result.metrics["top1"] == pytest.approx(sk.accuracy_score(labels, logits.argmax(axis=1)))
    assert result.metrics["top5"] == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=5, labels=range(9)))
    assert result.metrics["loss"] == pytest.approx(sk.log_loss(labels, probabilities, labels=range(9)), rel=1e-5)
    assert result.metrics["mean_class_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(labels, logits.argmax(axis=1))
    )
    assert result.metrics["n"] == 53 and "n=53" in result.protocol
    assert result.metrics["top1_low"] <= result.metrics["top1"] <= result.metrics["top1_high"]
    saved = np.load(tmp_path / "examples.npz")
    np.testing.assert_array_equal(saved["correct"], logits.argmax(axis=1) == labels)


def test_class_table_names_the_commonest_error(tmp_path):
    labels = np.array([0, 0, 0, 1, 1])
    images = np.eye(3, dtype=np.float32)[[0, 2, 2, 1, 1]].reshape(5, 1, 3, 1)
    names = ("cat", "dog", "<b>")
    evaluator = evaluation.build("classification", {}, batches=passes(images, labels), label_names=names)
    result = evaluator.run(predict, {"logits": np.eye(3, dtype=np.float32)}, tmp_path)
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [row["accuracy"] for row in rows] == ["0.3333", "1.0000", ""]
    assert [row["most_common_error"] for row in rows] == ["<b>", "", ""]
    assert "top5" not in result.metrics


@pytest.mark.parametrize("name", ["classification", "knn", "linear_probe_mae", "linear_probe_logistic"])
def test_batch_size_and_padding_change_nothing(name, tmp_path):
    images, labels = blobs(90, spread=1.5)
    rng = np.random.default_rng(1)
    variables = {"logits": rng.normal(size=(6, 4)), "features": rng.normal(size=(6, 6))}
    fields = {"knn": {"ks": (1, 5)}, "linear_probe_mae": {"epochs": 3, "warmup_epochs": 1, "batch_size": 16}}
    results = []
    for size in (7, 64, 90):
        evaluator = evaluation.build(
            name,
            fields.get(name, {}),
            batches=passes(images[:53], labels[:53], size),
            train_batches=passes(images[53:], labels[53:], size),
            label_names=NAMES,
        )
        results.append(evaluator.run(predict, variables, tmp_path / str(size)).metrics)
    assert results[0] == results[1] == results[2]


def test_order_of_examples_changes_nothing(logits_set, tmp_path):
    images, labels, variables = logits_set
    order = np.random.default_rng(3).permutation(53)
    straight = evaluation.build("classification", {}, batches=passes(images, labels), label_names=NAMES)
    again = passes(images[order], labels[order], index=order)
    shuffled = evaluation.build("classification", {}, batches=again, label_names=NAMES)
    assert straight.run(predict, variables, tmp_path).metrics == shuffled.run(predict, variables, tmp_path).metrics


def test_constant_logits_score_as_argmax_does():
    ranks = classification.label_ranks(np.zeros((4, 3)), np.array([0, 1, 2, 0]))
    np.testing.assert_array_equal(ranks, [0, 1, 2, 0])


def test_votes_equal_brute_force():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(40, 5)), rng.normal(size=(11, 5))
    labels = rng.integers(3, size=40)
    votes = knn.vote(train, labels, test, (1, 4, 40), 0.07)
    for row, x in enumerate(test):
        cosine = train @ x / np.linalg.norm(train, axis=1) / np.linalg.norm(x)
        for k in (1, 4, 40):
            nearest = sorted(range(40), key=lambda i: -cosine[i])[:k]
            expected = [sum(np.exp(cosine[i] / 0.07) for i in nearest if labels[i] == label) for label in range(3)]
            np.testing.assert_allclose(votes[k][row], expected, rtol=1e-9)


def test_nearest_neighbour_equals_scikit_learn(tmp_path):
    from sklearn.neighbors import KNeighborsClassifier

    images, labels = blobs(300, spread=1.5)
    variables = {"features": np.random.default_rng(0).normal(size=(6, 5))}
    features = np.stack([image.ravel() @ variables["features"] for image in images])
    reference = KNeighborsClassifier(
        n_neighbors=15, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(features[:200], labels[:200])
    evaluator = evaluation.build(
        "knn",
        {"ks": (15,)},
        batches=passes(images[200:], labels[200:]),
        train_batches=passes(images[:200], labels[:200]),
        label_names=NAMES,
    )
    result = evaluator.run(predict, variables, tmp_path)
    expected = reference.predict(features[200:]) == labels[200:]
    np.testing.assert_array_equal(np.load(tmp_path / "examples.npz")["k15"], expected)
    assert result.metrics["top1_k15"] == pytest.approx(expected.mean())


def test_leave_one_out_equals_brute_force(tmp_path):
    images, labels = blobs(40, spread=2.0)
    images[1], labels[1] = images[0], (labels[0] + 1) % 4  # its twin may vote, itself may not
    evaluator = evaluation.build(
        "knn",
        {"ks": (1, 5), "leave_one_out": True},
        batches=passes(images, labels),
        train_batches=lambda: (),
        label_names=NAMES,
    )
    result = evaluator.run(predict, {"features": np.eye(6, dtype=np.float32)}, tmp_path)
    found = np.load(tmp_path / "examples.npz")
    rows = images.reshape(40, -1) / np.linalg.norm(images.reshape(40, -1), axis=1, keepdims=True)
    for k in (1, 5):
        for i, row in enumerate(rows):
            cosine = rows @ row
            near = sorted((j for j in range(40) if j != i), key=lambda j: -cosine[j])[:k]
            votes = [sum(np.exp(cosine[j] / 0.07) for j in near if labels[j] == label) for label in range(4)]
            assert found[f"k{k}"][i] == (np.argmax(votes) == labels[i])
        assert result.metrics[f"top1_k{k}"] == found[f"k{k}"].mean()
    assert "leave-one-out, 39 training examples" in result.protocol
    with pytest.raises(ConfigError, match="40 neighbours of 39"):
        evaluation.build(
            "knn",
            {"ks": (40,), "leave_one_out": True},
            batches=passes(images, labels),
            train_batches=lambda: (),
            label_names=NAMES,
        ).run(predict, {"features": np.eye(6, dtype=np.float32)}, tmp_path)


def test_blocks_of_similarities_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    train, test, labels = rng.normal(size=(40, 5)), rng.normal(size=(11, 5)), rng.integers(3, size=40)
    whole = knn.vote(train, labels, test, (4,), 0.07)[4]
    monkeypatch.setattr(knn, "_BLOCK_SIMILARITIES", 80)
    np.testing.assert_allclose(knn.vote(train, labels, test, (4,), 0.07)[4], whole, rtol=1e-12)


def test_features_are_saved_with_ids(tmp_path):
    images, labels = blobs(10)
    variables = {"features": np.eye(6, dtype=np.float32)}
    evaluator = evaluation.build(
        "features", {}, batches=passes(images, labels), label_names=NAMES, example_id=lambda index: f"image-{index}"
    )
    evaluator.run(predict, variables, tmp_path)
    saved = np.load(tmp_path / "features.npz")
    np.testing.assert_allclose(saved["features"], images.reshape(10, 6))
    np.testing.assert_array_equal(saved["index"], np.arange(10))
    np.testing.assert_array_equal(saved["label"], labels)
    assert saved["class_names"].tolist() == list(NAMES)
    assert saved["id"][3] == "image-3"


def test_half_precision_features_are_saved_as_float32(tmp_path):
    import ml_dtypes

    images, _ = blobs(10)
    evaluator = evaluation.build("features", {}, batches=passes(images))
    evaluator.run(lambda name, variables, batch: {name: batch["image"].astype(ml_dtypes.bfloat16)}, {}, tmp_path)
    saved = np.load(tmp_path / "features.npz")["features"]
    assert saved.dtype == np.float32
    np.testing.assert_allclose(saved, images.reshape(10, 6), rtol=1e-2)


def test_errors_say_what_is_wrong(tmp_path):
    images, labels = blobs(20)
    variables = {"features": np.eye(6), "logits": np.zeros((6, 3))}
    with pytest.raises(ConfigError, match='did you mean "linear_probe_mae"'):
        evaluation.build("linear_probe_mea", {})
    with pytest.raises(ConfigError, match='did you mean "temperature"'):
        given = {"batches": passes(images), "train_batches": passes(images), "label_names": NAMES}
        evaluation.build("knn", {"temprature": 1}, **given)
    with pytest.raises(ConfigError, match=r"knn.*needs train_batches"):
        evaluation.build("knn", {}, batches=passes(images))
    with pytest.raises(ConfigError, match="ks: 200 neighbours of 20"):
        both = {"batches": passes(images, labels), "train_batches": passes(images, labels), "label_names": NAMES}
        evaluation.build("knn", {"ks": (200,)}, **both).run(predict, variables, tmp_path)
    for temperature in (0.0, -1.0, 1e-3):  # exp(1 / 1e-3) is infinite, and so would be the votes of several classes
        with pytest.raises(ConfigError, match=r"temperature: .* give 0.0015 or more"):
            fields = {"ks": (1,), "temperature": temperature}
            evaluation.build("knn", fields, **both).run(predict, variables, tmp_path)
    with pytest.raises(ValueError, match="labels run from 0 to 3, but the model has 3"):
        evaluation.build("classification", {}, batches=passes(images, labels), label_names=NAMES).run(
            predict, variables, tmp_path
        )
    with pytest.raises(ValueError, match="needs labels"):
        evaluation.build("classification", {}, batches=passes(images), label_names=NAMES).run(
            predict, variables, tmp_path
        )


def test_a_pass_that_repeats_or_lacks_examples_is_an_error():
    images, labels = blobs(20)
    for batches, message in [
        (passes(images, labels, index=np.arange(20) % 19), "example 0 was evaluated twice"),
        (lambda: [], "no batches"),
        (lambda: [{key: 0 * array for key, array in batch.items()} for batch in passes(images)()], "no readable"),
    ]:
        with pytest.raises(ValueError, match=message):
            base.collect(batches, lambda batch: {})


def test_not_finite_outputs_are_an_error():
    images, _ = blobs(20)
    with pytest.raises(ValueError, match="x is not finite for 2 of 20 examples, the first at index 7"):
        base.collect(passes(images), lambda batch: {"x": np.where(batch["index"] % 12 == 7, np.nan, 1.0)})


def test_what_was_answered_is_kept_by_name(logits_set, tmp_path):
    """By example id, names and the five most probable classes, against a sort of the softmax; no pickle to read it."""
    images, labels, variables = logits_set
    evaluator = evaluation.build(
        "classification",
        {},
        batches=passes(images, labels, index=np.arange(53) + 7),
        label_names=NAMES,
        example_id=lambda place: f"photo {place}",
    )
    evaluator.run(predict, variables, tmp_path)
    saved = np.load(tmp_path / "examples.npz", allow_pickle=False)
    logits = np.stack([image.ravel() @ variables["logits"] for image in images]).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert saved["id"].tolist() == [f"photo {place}" for place in range(7, 60)]
    assert saved["label_name"].tolist() == [NAMES[label] for label in labels]
    np.testing.assert_allclose(saved["probabilities"], probabilities, rtol=1e-5)
    assert saved["class_names"].tolist() == list(NAMES)
    for i, row in enumerate(probabilities):
        best = sorted(range(9), key=lambda c: -row[c])[:5]
        assert saved["top"][i].tolist() == best and saved["top_name"][i].tolist() == [NAMES[c] for c in best]
        assert saved["prediction_name"][i] == NAMES[best[0]] and saved["correct"][i] == (best[0] == labels[i])
        np.testing.assert_allclose(saved["top_probability"][i], row[best], rtol=1e-5)
        assert saved["label_probability"][i] == pytest.approx(row[labels[i]], rel=1e-5)


def test_of_many_classes_the_first_five_are_kept():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 30)), np.array([3, 40, 29, 99])
    found = answers.answered(logits, labels, [f"class {c}" for c in range(100)])
    assert found["top"].shape == (4, 5) and "probabilities" not in found
    assert found["label_probability"][1] == found["label_probability"][3] == 0 < found["label_probability"][2]
    assert found["prediction_name"].tolist() == [f"class {c}" for c in logits.argmax(axis=1)]


def test_among_some_of_a_heads_classes_labels_name_the_columns_of_probabilities(logits_set, tmp_path):
    """What a user computes from examples.npz is the figure of result.json."""
    images, labels, variables = logits_set
    chosen = (1, 4, 7)
    kept = np.isin(labels, chosen)
    given = {"label_names": NAMES, "data_classes": chosen}
    evaluator = evaluation.build(
        "classification", {"within": "data"}, batches=passes(images[kept], labels[kept]), **given
    )
    metrics = evaluator.run(predict, variables, tmp_path).metrics
    saved = np.load(tmp_path / "examples.npz")
    assert saved["class_names"].tolist() == [NAMES[place] for place in chosen]
    assert (saved["class_names"][saved["label"]] == saved["label_name"]).all()
    assert (saved["probabilities"].argmax(axis=1) == saved["label"]).mean() == pytest.approx(metrics["top1"])
    own = saved["probabilities"][np.arange(len(saved["label"])), saved["label"]]
    assert -np.log(own).mean() == pytest.approx(metrics["loss"], rel=1e-5)
    assert (saved["class_names"][saved["top"]] == saved["top_name"]).all()
    assert (saved["prediction"] == saved["top"][:, 0]).all()


def test_default_neighbours_are_as_many_as_there_are_examples_for(tmp_path):
    images, labels = blobs(77)
    both = dict(batches=passes(images[:53], labels[:53]), train_batches=passes(images[53:], labels[53:]))
    result = evaluation.build("knn", {}, **both, label_names=NAMES).run(predict, {"features": np.eye(6)}, tmp_path)
    assert {name for name in result.metrics if name.startswith("top1") and name[-1].isdigit()} == {
        "top1_k10",
        "top1_k20",
    }
    assert "k in (10, 20) (not [100, 200]: too few training examples)" in result.protocol
    few = both | {"train_batches": passes(images[53:60], labels[53:60])}
    with pytest.raises(ConfigError, match=r"ks: 200 neighbours of 7 training examples; choose smaller ks: \(7,\)"):
        evaluation.build("knn", {}, **few, label_names=NAMES).run(predict, {"features": np.eye(6)}, tmp_path)


@pytest.mark.parametrize("name", ["knn", "linear_probe_mae", "linear_probe_logistic"])
def test_learners_keep_names_and_probabilities(name, tmp_path):
    images, labels = blobs(90, spread=0.1)
    fields = {"knn": {"ks": (1, 5)}, "linear_probe_mae": {"epochs": 3, "warmup_epochs": 1, "base_learning_rate": 10.0}}
    evaluator = evaluation.build(
        name,
        fields.get(name, {}),
        batches=passes(images[:53], labels[:53]),
        train_batches=passes(images[53:], labels[53:]),
        label_names=NAMES,
        example_id=lambda place: f"photo {place}",
    )
    evaluator.run(predict, {"features": np.eye(6, dtype=np.float32)}, tmp_path)
    saved = np.load(tmp_path / "examples.npz", allow_pickle=False)
    prefix = "k5_" if name == "knn" else ""
    right = saved["k5" if name == "knn" else "correct"]
    assert saved["id"][3] == "photo 3" and right.any()
    assert ((saved[f"{prefix}prediction_name"] == saved["label_name"]) == right).all()
    np.testing.assert_allclose(saved[f"{prefix}probabilities"].sum(axis=1), 1, rtol=1e-5)
    assert (saved[f"{prefix}top_name"][:, 0] == saved[f"{prefix}prediction_name"]).all()


@pytest.mark.parametrize("kind", ["knn", "linear_probe_logistic"])
def test_classes_that_cannot_be_learned_are_told(kind, tmp_path):
    images, labels = blobs(120, spread=0.05)
    known = labels > 0  # the training examples lack class 0, as a folder of few images may
    fields = {"ks": (3,)} if kind == "knn" else {"sweep": (1.0,)}
    given = {"batches": passes(images, labels), "label_names": NAMES}
    learned = passes(images[known], labels[known])
    result = evaluation.build(kind, fields, train_batches=learned, **given).run(
        predict, {"features": np.eye(6)}, tmp_path
    )
    assert result.metrics["top1_k3" if kind == "knn" else "top1"] == pytest.approx(known.mean())
    assert f"; {(~known).sum()} of these of classes without a training example" in result.protocol

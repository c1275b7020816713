"""Zero-shot classification against the protocol written out, with embeddings made up from the texts."""

import csv
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitvlm import evaluation
from vitvlm.core.config import ConfigError
from vitvlm.evaluation.zero_shot import TEMPLATES, _first_right

NAMES = ("cat", "dog", "{odd}")


def tokenize(texts):
    """Each text one number."""
    return np.array([[zlib.crc32(text.encode()) % 2**31] for text in texts]), np.ones((len(texts), 1), np.int32)


def text_embedding(number):
    return np.random.default_rng(int(number)).normal(size=5) * 3


def predict(name, variables, batch):
    if name == "image_embedding":
        return {"embedding": np.asarray(batch["image"], np.float32)}
    return {"embedding": np.stack([text_embedding(row[0]) for row in batch["text_tokens"]])}


def batches(images, labels):
    return lambda: [
        {"image": images, "label": labels, "index": np.arange(len(images)), "example_mask": np.ones(len(images))}
    ]


def expected_classes(names, templates):
    rows = []
    for name in names:
        each = [text_embedding(tokenize([t.replace("{}", name)])[0][0, 0]) for t in templates]
        mean = np.mean([x / np.linalg.norm(x) for x in each], axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.stack(rows)


@pytest.mark.parametrize("templates", ["photo", "clip_7", ("{}", "the {}!")])
def test_equals_the_protocol_written_out(templates, tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(3, size=40)
    evaluator = evaluation.build(
        "zero_shot",
        {"templates": templates},
        batches=batches(images, labels),
        tokenize=tokenize,
        label_names=NAMES,
    )
    result = evaluator.run(predict, {}, tmp_path)
    sentences = TEMPLATES.get(templates, templates) if isinstance(templates, str) else templates
    scores = images / np.linalg.norm(images, axis=1, keepdims=True) @ expected_classes(NAMES, sentences).T
    right = scores.argmax(axis=1) == labels
    assert result.metrics["top1"] == pytest.approx(right.mean())
    assert result.metrics["mean_class_accuracy"] == pytest.approx(
        np.mean([right[labels == c].mean() for c in range(3)])
    )
    saved = np.load(tmp_path / "examples.npz")
    np.testing.assert_array_equal(saved["prediction"], scores.argmax(axis=1))
    assert saved["prediction_name"].tolist() == [NAMES[c] for c in scores.argmax(axis=1)]
    probabilities = np.exp(100 * scores) / np.exp(100 * scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(saved["probabilities"], probabilities, rtol=1e-4, atol=1e-6)
    assert [row["name"] for row in csv.DictReader((tmp_path / "classes.csv").open())] == list(NAMES)
    assert f"{len(sentences)} templates" in result.protocol


@pytest.mark.parametrize("by_name", [False, True])
def test_other_names_stand_in_for_the_datas(by_name, tmp_path):
    words = ("chat", "chien", "fou")
    centres = expected_classes(("chat", "chien", "fou"), ("a photo of a {}.",))
    evaluator = evaluation.build(
        "zero_shot",
        {"class_names": dict(reversed(list(zip(NAMES, words)))) if by_name else words},
        batches=batches(centres, np.arange(3)),
        tokenize=tokenize,
        label_names=NAMES,
    )
    assert evaluator.run(predict, {}, tmp_path).metrics["top1"] == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"templates": "phto"}, "no set 'phto'; there is name, photo, clip_7"),
        ({"templates": ("a cat",)}, "'a cat' needs one {}"),
        ({"class_names": ("one",)}, "1 names for 3 classes"),
        ({"class_names": {"horse": "cheval"}}, "the data has no class 'horse'; there is: "),
    ],
)
def test_what_cannot_be_meant(fields, message):
    images = np.ones((2, 5), np.float32)
    with pytest.raises(ConfigError, match=message):
        evaluation.build(
            "zero_shot", fields, batches=batches(images, np.arange(2)), tokenize=tokenize, label_names=NAMES
        )


@given(n=st.integers(1, 30), seed=st.integers(0, 100))
def test_the_rank_of_a_class_is_that_of_its_first_image_in_a_full_sort(n, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(4, size=(n, 5)) / 4, rng.integers(5, size=n)
    ranks = _first_right(logits, labels)
    for c in range(5):
        order = labels[np.argsort(-logits[:, c], kind="stable")]
        assert ranks[c] == (np.flatnonzero(order == c)[0] if (labels == c).any() else n)

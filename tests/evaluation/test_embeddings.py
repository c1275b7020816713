"""Compositionality and the geometry of embeddings, re-derived in NumPy and SciPy; embeddings are the inputs."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from vitvlm import evaluation
from vitvlm.core.config import ConfigError
from vitvlm.data import scenes
from vitvlm.evaluation import compositionality, geometry

KINDS = ("one", "two")


def passes(image, text, mask, size):
    n = len(image)
    arrays = {
        "image": image,
        "text_tokens": text,
        "text_mask": mask,
        "index": np.arange(n),
        "example_mask": np.ones(n, bool),
    }
    filled = {name: np.pad(x, ((0, -n % size), *((0, 0),) * (x.ndim - 1))) for name, x in arrays.items()}
    return lambda: ({name: x[i : i + size] for name, x in filled.items()} for i in range(0, n, size))


def predict(name, variables, batch):
    return {"embedding": 3 * np.asarray(batch[{"image_embedding": "image", "text_embedding": "text_tokens"}[name]])}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def a_set(n=11, texts=3, width=5):
    rng = np.random.default_rng(0)
    image, text = (rng.normal(size=shape).astype(np.float32) for shape in ((n, width), (n, texts, width)))
    return image, text, np.ones((n, texts, width), np.int32)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_the_caption_against_its_negatives(size, tmp_path):
    image, text, mask = a_set()
    mask[3, 1] = 0
    mask[4, 1:] = 0
    evaluator = evaluation.build("compositionality", {"kinds": KINDS}, batches=passes(image, text, mask, size))
    result = evaluator.run(predict, {}, tmp_path)
    scores = np.einsum("ne,nte->nt", unit(image), unit(text))
    one = [scores[i, 0] > scores[i, 1] for i in range(11) if i not in (3, 4)]
    two = [scores[i, 0] > scores[i, 2] for i in range(11) if i != 4]
    both = [all(scores[i, 0] > scores[i, k] for k in (1, 2) if mask[i, k, 0]) for i in range(11)]
    assert result.metrics["one"] == pytest.approx(np.mean(one))
    assert result.metrics["two"] == pytest.approx(np.mean(two))
    assert result.metrics["all_kinds"] == pytest.approx(np.mean(both))
    assert "chance 50 % of each kind, 33% of all" in result.protocol


def test_a_tower_that_sees_no_order_is_never_right(tmp_path):
    image, text, mask = a_set()
    text[:] = text[:, :1]
    evaluator = evaluation.build("compositionality", {"kinds": KINDS}, batches=passes(image, text, mask, 4))
    assert evaluator.run(predict, {}, tmp_path).metrics["one"] == 0


def test_what_does_not_fit_is_named(tmp_path):
    image, text, mask = a_set()
    evaluator = evaluation.build("compositionality", {}, batches=passes(image, text, mask, 4))
    with pytest.raises(ConfigError, match="kinds: 4 names, and 2 texts"):
        evaluator.run(predict, {}, tmp_path)
    mask[:, 1] = 0
    evaluator = evaluation.build("compositionality", {"kinds": KINDS}, batches=passes(image, text, mask, 4))
    with pytest.raises(ValueError, match="no image has a negative of kind 'one'"):
        evaluator.run(predict, {}, tmp_path)
    mask[2, 0] = 0
    evaluator = evaluation.build("compositionality", {"kinds": KINDS}, batches=passes(image, text, mask, 4))
    with pytest.raises(ValueError, match="no right caption"):
        evaluator.run(predict, {}, tmp_path)


def test_the_kinds_are_those_of_scenes():
    assert compositionality.Compositionality(batches=lambda: []).kinds == scenes.NEGATIVES


@pytest.mark.parametrize("size", [4, 16])
def test_geometry(size, tmp_path):
    image, text, mask = a_set()
    mask[2, 1:] = 0
    result = evaluation.build("embedding_geometry", {}, batches=passes(image, text, mask, size)).run(
        predict, {}, tmp_path
    )
    x, owner = unit(image.astype(float)), np.nonzero(mask[..., 0])[0]
    y = unit(text.astype(float))[mask[..., 0] > 0]
    distances = ((x[owner] - y) ** 2).sum(axis=1)
    expected = {
        "modality_gap": np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)),
        "alignment": distances.mean(),
        "image_uniformity": np.log(np.mean(np.exp(-2 * pdist(x, "sqeuclidean")))),
        "text_uniformity": np.log(np.mean(np.exp(-2 * pdist(y, "sqeuclidean")))),
        "pair_similarity": np.mean([x[i] @ y[j] for j, i in enumerate(owner)]),
        "other_similarity": np.mean([x[i] @ y[j] for j in range(len(y)) for i in range(11) if i != owner[j]]),
        "n": 11,
        "texts": 31,
    }
    assert result.metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("block", [1, 3, 50])
def test_uniformity_in_blocks(block):
    x = unit(np.random.default_rng(0).normal(size=(10, 4)))
    assert geometry.uniformity(x, block) == pytest.approx(np.log(np.mean(np.exp(-2 * pdist(x, "sqeuclidean")))))
    assert geometry.uniformity(np.repeat(x[:1], 4, axis=0), block) == pytest.approx(0)

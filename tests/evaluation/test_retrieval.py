"""Retrieval against NumPy's sort, CLIP_benchmark's definitions, and sets where the answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitvlm import evaluation
from vitvlm.core.config import ConfigError
from vitvlm.evaluation import retrieval


def a_set(n, most, width=6, seed=0):
    """Unit embeddings of n images with 1 to `most` texts each, in shuffled order of texts."""
    rng = np.random.default_rng(seed)
    owner = np.sort(np.concatenate([np.arange(n), rng.integers(n, size=n * (most - 1) // 2)]))
    image = rng.normal(size=(n, width))
    text = image[owner] + rng.normal(size=(len(owner), width))
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    return unit(image), unit(text), owner


@given(n=st.integers(1, 30), most=st.integers(1, 5), block=st.integers(1, 40), seed=st.integers(0, 50))
def test_ranks_equal_a_full_sort(n, most, block, seed):
    image, text, owner = a_set(n, most, seed=seed)
    similarity = image.astype(np.float64) @ text.astype(np.float64).T
    to_text, to_image = retrieval.ranks(image, text, owner, block)
    for i in range(n):
        order = np.argsort(-similarity[i], kind="stable")
        assert to_text[i] == np.flatnonzero(owner[order] == i)[0]
    for j in range(len(text)):
        assert to_image[j] == np.flatnonzero(np.argsort(-similarity[:, j], kind="stable") == owner[j])[0]


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recalls_equal_clip_benchmark(k):
    """Its definition: positive pairs among the top k of the score matrix, text to image; any of them, image to text."""
    image, text, owner = a_set(40, 4, seed=3)
    scores = torch.from_numpy(text) @ torch.from_numpy(image).T
    positive = torch.zeros_like(scores, dtype=bool)
    positive[torch.arange(len(owner)), torch.from_numpy(owner)] = True

    def recall_at_k(scores, positive):
        hits = torch.nn.functional.one_hot(torch.topk(scores, k, dim=1).indices, scores.shape[1]).sum(dim=1) > 0
        return ((hits & positive).sum(dim=1) > 0).float().mean().item()

    to_text, to_image = retrieval.ranks(image, text, owner)
    assert np.mean(to_image < k) == pytest.approx(recall_at_k(scores, positive), abs=1e-6)
    assert np.mean(to_text < k) == pytest.approx(recall_at_k(scores.T, positive.T), abs=1e-6)


def test_a_collapsed_model_is_at_chance():
    image, text = np.ones((50, 4), np.float32) / 2, np.ones((100, 4), np.float32) / 2
    to_text, to_image = retrieval.ranks(image, text, np.repeat(np.arange(50), 2), block=7)
    assert np.mean(to_image < 5) == pytest.approx(0.1) and np.mean(to_text < 10) == pytest.approx(0.1)


def test_equal_images_are_ordered_by_place():
    image = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    to_text, to_image = retrieval.ranks(image, image, np.arange(3))
    assert to_image.tolist() == [0, 1, 0] and to_text.tolist() == [0, 1, 0]


def test_an_image_without_a_text_is_never_a_hit():
    to_text, to_image = retrieval.ranks(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:2], np.arange(2))
    assert to_text.tolist() == [0, 0, 2] and to_image.tolist() == [0, 0]


def passes(image, text, mask, size):
    def batches():
        for start in range(0, len(image), size):
            rows = slice(start, start + size)
            real = len(image[rows])
            pad = lambda x, real=real: np.concatenate([x, np.repeat(x[:1], size - real, axis=0)])  # noqa: E731
            yield {
                "image": pad(image[rows]),
                "text_tokens": pad(text[rows]),
                "text_mask": pad(mask[rows]),
                "index": pad(np.arange(len(image))[rows]),
                "example_mask": np.arange(size) < real,
            }

    return batches


def predict(name, variables, batch):
    """Embeddings that are the inputs themselves."""
    key = {"image_embedding": "image", "text_embedding": "text_tokens"}[name]
    return {"embedding": np.asarray(batch[key], np.float32) * variables["scale"]}


@pytest.mark.parametrize("size", [1, 4, 16])
def test_the_evaluator_sees_every_text_once(size, tmp_path):
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(10, 6)), rng.normal(size=(10, 3, 6))
    text[:, 0] += 2 * image
    mask = np.ones((10, 3, 6), np.int32)
    mask[2:5, 1:] = 0
    evaluator = evaluation.build("retrieval", {"ks": (1, 3)}, batches=passes(image, text, mask, size))
    result = evaluator.run(predict, {"scale": 7.0}, tmp_path)
    assert result.metrics["n"] == 10 and result.metrics["texts"] == 24
    owner, place = np.nonzero(mask.any(axis=-1))
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    to_text, to_image = retrieval.ranks(unit(image), unit(text[owner, place]), owner)
    assert result.metrics["image_to_text_r1"] == np.mean(to_text < 1)
    assert result.metrics["text_to_image_r3"] == np.mean(to_image < 3)
    assert result.metrics["text_to_image_median_rank"] == np.median(to_image) + 1
    saved = np.load(tmp_path / "examples.npz")
    np.testing.assert_array_equal(saved["text_rank"], to_image)
    assert "24 texts" in result.protocol and "R@1 0.1" in result.protocol


def test_a_set_without_texts_says_what_to_add(tmp_path):
    batches = lambda: [{"image": np.ones((2, 3)), "index": np.arange(2), "example_mask": np.ones(2)}]  # noqa: E731
    with pytest.raises(
        ValueError, match=r"this evaluator needs texts: add tokenize to the operations of config\.data\.eval"
    ):
        evaluation.build("retrieval", {}, batches=batches).run(predict, {"scale": 1.0}, tmp_path)


def order_of(scores):
    return np.argsort(-scores, axis=1, kind="stable")


def a_matcher(image, text, owner, logits):
    """An exact pass over images with their texts' numbers as tokens, and the predictions of a model that matches."""
    most = np.bincount(owner).max()
    places = np.array(
        [np.pad(np.flatnonzero(owner == i) + 1, (0, most - (owner == i).sum())) for i in range(len(image))]
    )
    calls = []

    def batches():
        for start in range(0, len(image), 4):
            rows = np.arange(start, start + 4) % len(image)
            real = np.arange(start, start + 4) < len(image)
            tokens = places[rows][:, :, None].astype(np.int32)
            yield {
                "image": rows[:, None].astype(np.float32),
                "text_tokens": tokens,
                "text_mask": (tokens > 0).astype(np.int32),
                "index": rows + 100,
                "example_mask": real.astype(np.float32),
            }

    def predict(name, variables, batch):
        if name == "image_embedding":
            return {"embedding": image[batch["image"][:, 0].astype(int)]}
        if name == "text_embedding":
            return {"embedding": text[np.maximum(batch["text_tokens"][:, 0] - 1, 0)]}
        assert name == "match_texts" and batch["text_mask"].shape == batch["text_tokens"].shape
        calls.append(batch["text_mask"].sum())
        return {"match": logits[batch["image"].astype(int), np.maximum(batch["text_tokens"][..., 0] - 1, 0)]}

    return batches, predict, calls


@pytest.mark.parametrize(("k", "weights"), [(5, (1.0, 1.0)), (20, (0.5, 0.0)), (60, (1.0, 2.0))])
def test_reranking_equals_a_full_sort(k, weights, tmp_path):
    """Written as the authors have it: a matrix of scores in which all but the k nearest are far below."""
    image, text, owner = a_set(11, 5, seed=4)
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(len(image), len(text)))
    similarity = image.astype(np.float64) @ text.astype(np.float64).T
    own = np.arange(len(image))[:, None] == owner
    batches, predict, calls = a_matcher(image, text, owner, logits)
    fields = {"rerank": k, "match_weight": weights[0], "similarity_weight": weights[1], "ks": (1, 3)}
    evaluator = evaluation.build("retrieval", fields, batches=batches)
    result = evaluator.run(predict, {}, tmp_path)
    combined = weights[0] * logits + weights[1] * similarity
    for way, sims, scores, right in (
        ("image_to_text", similarity, combined, own),
        ("text_to_image", similarity.T, combined.T, own.T),
    ):
        nearest = np.argsort(-sims, axis=1, kind="stable")[:, :k]
        full = sims - 1000.0
        np.put_along_axis(full, nearest, np.take_along_axis(scores, nearest, axis=1), axis=1)
        order = np.argsort(-full, axis=1, kind="stable")
        ranks = np.take_along_axis(right, order, axis=1).argmax(axis=1)
        for at in (1, 3):
            assert result.metrics[f"reranked_{way}_r{at}"] == pytest.approx(np.mean(ranks < at)), (way, at)
        assert result.metrics[f"reranked_{way}_median_rank"] == np.median(ranks) + 1
        assert result.metrics[f"{way}_r1"] == pytest.approx(np.take_along_axis(right, order_of(sims)[:, :1], 1).mean())
    assert f"reranked: the {k} nearest by {weights[0]:g} x matching logit + {weights[1]:g} x cosine" in result.protocol
    assert sum(calls) <= 2 * k * (len(image) + len(text))
    assert set(result.metrics) - {f"{n}{b}" for n in evaluator.metrics for b in ("_low", "_high")} == set(
        evaluator.metrics
    )


def test_fewer_candidates_than_places_are_refused():
    with pytest.raises(ConfigError, match="rerank: 5; recall at 10 needs as many candidates at least"):
        evaluation.check(
            evaluation.build("retrieval", {"rerank": 5}, batches=lambda: ()),
            evaluation.Facts("a", "b", None, None, ("text_tokens",), ("match_texts",)),
            "config.evals.r",
        )
    with pytest.raises(ConfigError, match="this task predicts nothing named 'match_texts'"):
        evaluation.check(
            evaluation.build("retrieval", {"rerank": 10}, batches=lambda: ()),
            evaluation.Facts("a", "b", None, None, ("text_tokens",), ("text_embedding",)),
            "config.evals.r",
        )

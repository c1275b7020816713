"""Neighbours against a full sort, what a page has room for, and confusions against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from vitvlm.evaluation import confusions, nearest


def unit(rng, n, width=5):
    rows = rng.normal(size=(n, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def some_pairs(n, m, seed=0):
    rng = np.random.default_rng(seed)
    return nearest.Pairs(unit(rng, n), unit(rng, m), np.arange(n), rng.integers(n, size=m))


@given(q=st.integers(1, 20), c=st.integers(1, 30), k=st.integers(1, 12), block=st.integers(1, 40), ties=st.booleans())
def test_top_equals_a_full_sort(q, c, k, block, ties):
    rng = np.random.default_rng(q * 100 + c)
    queries, candidates = unit(rng, q), unit(rng, c)
    if ties:
        candidates = candidates[rng.integers(c, size=c)]
    places, scores = nearest.top(queries, candidates, k, block)
    similarity = queries @ candidates.T
    expected = np.argsort(-np.round(similarity, 10), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(similarity, expected, axis=1), atol=1e-12)


@given(n=st.integers(1, 60), m=st.integers(1, 80), shown=st.integers(12, 40), k=st.integers(1, 10))
def test_a_page_shows_every_image_that_its_texts_need_and_no_more_than_it_may(n, m, shown, k):
    pairs = some_pairs(n, m, seed=n * 100 + m)
    found = nearest.search(pairs, range(m), shown, k)
    assert len(found.images) == min(n, shown)
    assert set(np.flatnonzero(np.isin(pairs.text_group, list(found.images)))) <= set(found.strings)
    assert (len(found.images), len(found.texts)) == (n, m) if n <= shown else len(found.texts) > 0
    expected = np.argsort(-pairs.text @ pairs.image.T, axis=1, kind="stable")[:, :k]
    for text, near in found.texts.items():
        assert [place for place, _ in near] == expected[text].tolist()
        assert {place for place, _ in near} | {int(pairs.text_group[text])} <= found.images.keys()
    assert all(len(near) == min(k, m) for near in found.images.values())


def test_what_must_be_shown_is():
    found = nearest.search(some_pairs(100, 50), range(50), 30, 5, first=[97, 98, 99])
    assert {97, 98, 99} <= found.images.keys() and len(found.images) <= 30 and found.texts


def test_a_text_without_a_right_image_has_none():
    pairs = nearest.Pairs(np.eye(3), np.eye(3)[:2], np.array([0, 0, 0]), np.arange(2))
    data = nearest.page_data(pairs, nearest.search(pairs, range(2), 20, 2), np.array([0, 3]), np.array([0, 1, 2]))
    assert data["texts"][0]["right"] == 0 and data["texts"][1]["right"] is None
    assert data["texts"][1]["rank"] == 4 and data["images"][2]["near"][0] == [0, 0.0]
    assert [data["images"][place]["rank"] for place in range(3)] == [1, 2, None]


@pytest.mark.parametrize("classes", [2, 4, 30])
def test_confusions_equal_scikit_learns(classes):
    rng = np.random.default_rng(classes)
    labels, prediction = rng.integers(classes, size=(2, 200))
    table = confusion_matrix(labels, prediction, labels=range(classes))
    np.testing.assert_array_equal(confusions.counts(labels, prediction, classes), table)
    found = confusions.pairs(labels, prediction, most=1000, examples=3)
    off = table - np.diag(np.diag(table))
    assert {(pair.label, pair.prediction): pair.count for pair in found} == {
        (int(a), int(b)): int(off[a, b]) for a, b in np.argwhere(off)
    }
    assert [pair.count for pair in found] == sorted((pair.count for pair in found), reverse=True)
    assert all(pair.share == pytest.approx(pair.count / table[pair.label].sum()) for pair in found)
    for pair in found:
        assert len(set(pair.wrong)) == min(3, pair.count)
        assert all((labels[place], prediction[place]) == (pair.label, pair.prediction) for place in pair.wrong)
    assert confusions.pairs(labels, prediction, most=1, examples=3) == found[:1]
    assert confusions.pairs(labels, labels, most=5, examples=3) == []


def test_the_worst_classes_come_first_with_their_mistakes():
    labels, prediction = np.array([0, 0, 1, 1, 1, 1, 2, 3]), np.array([0, 1, 0, 1, 2, 3, 2, 0])
    rows = confusions.worst(labels, prediction, most=3, examples=2)
    assert [(row.label, row.n, row.accuracy, row.wrong) for row in rows] == [
        (3, 1, 0.0, (7,)),
        (1, 4, 0.25, (2, 5)),
        (0, 2, 0.5, (1,)),
    ]
    assert confusions.worst(np.zeros(3, int), np.zeros(3, int), 3, 2) == []


@pytest.mark.parametrize("shapes", [((4, 3, 2), (5, 2)), ((4, 2), (5, 3, 2)), ((4, 2), (5, 2))], ids=str)
def test_of_several_embeddings_the_best_counts(shapes):
    rng = np.random.default_rng(0)
    queries, candidates = (rng.normal(size=shape) for shape in shapes)
    each = [[np.max(np.atleast_2d(q) @ np.atleast_2d(c).T) for c in candidates] for q in queries]
    np.testing.assert_allclose(nearest.similarities(queries, candidates), each)
    places, scores = nearest.top(queries, candidates, k=2, block=2)
    np.testing.assert_array_equal(places, np.argsort(-np.array(each), axis=1)[:, :2])
    np.testing.assert_allclose(scores, -np.sort(-np.array(each), axis=1)[:, :2])
    if candidates.ndim == 2:
        own = nearest.own_similarities(queries, candidates[:4])
        np.testing.assert_allclose(own, np.diagonal(np.array(each)[:, :4]))

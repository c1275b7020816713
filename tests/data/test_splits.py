"""Splits: slices as Python's, stratified orders and fractions that depend on names alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitvlm.core.config import ConfigError
from vitvlm.data import splits


@given(st.integers(1, 500), st.none() | st.integers(-600, 600), st.none() | st.integers(-600, 600))
def test_slices_are_pythons(count, start, stop):
    text = f"train[{'' if start is None else start}:{'' if stop is None else stop}]"
    expected = list(range(count))[start:stop]
    if expected:
        assert list(splits.parse(text).indices(count)) == expected
    else:
        with pytest.raises(ConfigError, match="selects none"):
            splits.parse(text).indices(count)


@given(st.integers(10, 500), st.integers(1, 99))
def test_percentages_on_both_sides_of_a_cut_share_out_everything(count, percent):
    first = round(percent * count / 100)
    if 0 < first < count:
        head = splits.parse(f"train[:{percent}%]").indices(count)
        tail = splits.parse(f"train[{percent}%:]").indices(count)
        assert [*head, *tail] == list(range(count)) and len(head) == first


@pytest.mark.parametrize(
    "text", ["", "train[", "train[1]", "train[:5x]", "train[:10%", "train[a:b]", "train+test", "[:3]"]
)
def test_what_is_no_split_is_an_error(text):
    with pytest.raises(ConfigError, match="is not a split"):
        splits.parse(text)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(0, 3))
def test_every_prefix_of_a_stratified_order_holds_the_classes_in_proportion(labels, seed):
    labels = np.array(labels)
    names = [f"example {i}" for i in range(len(labels))]
    order = splits.stratified_order(names, labels, seed)
    assert sorted(order) == list(range(len(labels)))
    for size in range(1, len(labels) + 1):
        for label in np.unique(labels):
            share = np.sum(labels[order[:size]] == label)
            assert abs(share - size * np.mean(labels == label)) <= len(np.unique(labels))


def test_a_new_example_keeps_the_others_in_order():
    labels = np.zeros(50, int)
    names = [f"{i}.png" for i in range(50)]
    before = [names[i] for i in splits.stratified_order(names, labels, 0)]
    after = splits.stratified_order([*names, "new.png"], np.zeros(51, int), 0)
    assert [name for i in after if (name := [*names, "new.png"][i]) != "new.png"] == before
    assert before != sorted(before)


def test_a_fraction_is_taken_of_each_class_and_follows_the_seed():
    labels = np.repeat([0, 1, 2], [200, 100, 3])
    names = [str(i) for i in range(303)]
    chosen = splits.stratified_fraction(names, labels, 0.05, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [10, 5, 1]
    assert np.array_equal(chosen, splits.stratified_fraction(names, labels, 0.05, seed=1))
    assert not np.array_equal(chosen, splits.stratified_fraction(names, labels, 0.05, seed=2))
    assert set(chosen) <= set(splits.stratified_fraction(names, labels, 0.1, seed=1))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_a_fraction_outside_0_to_1_is_an_error(fraction):
    with pytest.raises(ConfigError, match="labels_fraction"):
        splits.stratified_fraction(["a"], np.zeros(1, int), fraction, seed=0)

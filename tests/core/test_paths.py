"""Paths and rules over parameter trees."""

import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitvlm.core import paths, rules

NAMES = st.text("abcxyz_0123456789", min_size=1, max_size=6)
TREES = st.recursive(st.integers(), lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=4), max_leaves=12)


@given(st.dictionaries(NAMES, TREES, min_size=1, max_size=4))
def test_unflatten_inverts_flatten(tree):
    assert paths.unflatten(paths.flatten(tree)) == tree


def test_flatten_names_attributes_and_positions_as_jax_does():
    tree = {"a": (jnp.zeros(1), {"b": jnp.zeros(2)})}
    assert list(paths.flatten(tree)) == ["a/0", "a/1/b"]


@pytest.mark.parametrize("leaves", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}])
def test_a_path_inside_a_leaf_is_an_error(leaves):
    with pytest.raises(ValueError, match="'a"):
        paths.unflatten(leaves)


def test_map_with_path_keeps_the_structure():
    tree = {"a": {"b": 1}, "c": 2}
    mapped = paths.map_with_path(lambda path, leaf, other: (path, leaf + other), tree, tree)
    assert mapped == {"a": {"b": ("a/b", 2)}, "c": ("c", 4)}
    assert jax.tree.structure(paths.map_with_path(lambda path, leaf: leaf, tree)) == jax.tree.structure(tree)


def test_the_first_rule_that_matches_the_whole_path_wins():
    found = rules.match(
        [("head/.*", "head"), (".*/bias", "bias"), (".*", "rest")],
        ["head/bias", "mlp/up/bias", "mlp/up/kernel", "xhead/kernel"],
        "test",
    )
    assert found == {"head/bias": "head", "mlp/up/bias": "bias", "mlp/up/kernel": "rest", "xhead/kernel": "rest"}


@given(st.lists(st.sampled_from(["a/x", "a/y", "b/x", "b/y"]), unique=True, min_size=1))
def test_match_is_the_first_fullmatch(names):
    patterns = ["a/.*", ".*/x", ".*"]
    expected = {name: next(p for p in patterns if re.fullmatch(p, name)) for name in names}
    used = [p for p in patterns if p in expected.values()]
    assert rules.match([(p, p) for p in used], names, "test") == expected


def test_an_uncovered_path_is_an_error_that_lists_all():
    with pytest.raises(rules.RuleError, match=r"optimizer\.freeze: no rule covers 'b', 'c'"):
        rules.match([("a", 1)], ["a", "b", "c"], "optimizer.freeze")


def test_a_rule_that_never_wins_is_an_error():
    with pytest.raises(rules.RuleError, match="never used: 'head'"):
        rules.match([(".*", 1), ("head", 2)], ["head"], "test")


def test_a_pattern_that_is_no_regex_is_an_error():
    with pytest.raises(rules.RuleError, match=r"'\(' is not a regular expression"):
        rules.match([("(", 1)], ["a"], "test")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (".*", r"x\.rules: '\.\*' is no list of rules"),
        ((".*", None), r"x\.rules: '\.\*' is no pair \(pattern, value\)"),
        ((("a", 1, 2),), r"x\.rules: \('a', 1, 2\) is no pair"),
        (({"a": 1},), r"x\.rules: \{'a': 1\} is no pair"),
        (7, r"x\.rules: 7 is no list of rules"),
    ],
)
def test_what_is_no_rule_is_said(given, message):
    with pytest.raises(rules.RuleError, match=message):
        rules.match(given, ["a"], "x.rules")

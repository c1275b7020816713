import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitvlm.core import classes
from vitvlm.core.config import ConfigError


@given(st.lists(st.text(min_size=1), min_size=1, unique_by=classes.composed), st.data())
def test_any_names_are_found_as_they_are_in_any_order(known, data):
    names = data.draw(st.permutations(known))[: data.draw(st.integers(1, len(known)))]
    found = classes.match(names, known)
    assert [known[found.places[name]] for name in names] == list(names)
    assert set(found.rules.values()) == {classes.EXACT} and not found.missing and not found.unclear


@pytest.mark.parametrize(
    ("name", "known", "rule"),
    [
        ("Great_White", "great white", "ignoring case, _ and -"),
        ("T-shirt", "t SHIRT", "ignoring case, _ and -"),
        ("tench", "tench, Tinca tinca", "by a synonym between commas"),
        ("tinca_tinca", "tench, Tinca tinca", "by a synonym between commas"),
        ("tench, Tinca tinca", "tench", "by a synonym between commas"),
    ],
)
def test_names_are_found_by_the_first_rule_that_finds_them(name, known, rule):
    found = classes.match([name], ["other", known])
    assert found.places == {name: 1} and found.rules == {name: rule}
    assert classes.match([name], ["other", known], [classes.EXACT]).missing == (name,)


def test_what_is_the_same_to_the_letter_comes_first():
    found = classes.match(["missile", "Cat"], ["projectile, missile", "missile", "cat", "Cat"])
    assert found.places == {"missile": 1, "Cat": 3}


@pytest.mark.parametrize(
    ("names", "known", "message"),
    [
        (["crane"], ["crane", "dog", "crane"], "'crane' could be 'crane (class 0)' or 'crane (class 2)'"),
        (["Cat"], ["cat", "CAT"], "'Cat' could be 'cat' or 'CAT'"),
        (["Cat", "cat"], ["CAT"], "'Cat' and 'cat' are both 'CAT'"),
    ],
)
def test_what_is_unclear_is_said(names, known, message):
    assert classes.match(names, known).unclear == (message,)


def test_names_that_occur_more_than_once_are_told_apart():
    known = ("crane", "dog", "crane")
    assert classes.distinct(known) == ("crane (class 0)", "dog", "crane (class 2)")
    assert classes.match(["crane (class 2)"], known).places == {"crane (class 2)": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"field: .*names\.json: No such file"),
        ("{", r"field: .*names\.json: is not JSON"),
        (json.dumps(["a"]), r"field=.*names\.json: is a list, not \{class of the data: its name in the job\}"),
        (json.dumps({"a": 3}), r"field=.*names\.json: 'a': 3: both are names"),
    ],
)
def test_files_that_hold_no_names(content, message, tmp_path):
    if content is not None:
        (tmp_path / "names.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        classes.mapping(str(tmp_path / "names.json"), "field")

"""Old names of fields: read in old files, answered in new configs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitvlm import models
from vitvlm.core import config, renames
from vitvlm.core.config import ConfigError

OLD = {
    "side_by_side": True,
    "model": {"name": "two_towers", "image": {"name": "vit", "representation": 8}, "representation": 4},
    "init_from": {"first": {"path": "a", "fields": {"representation": 3}}},
    "task": {"name": "contrast", "block": 2},
    "evals": {"a": {"type": "retrieval", "shown": 3}, "shown": {"type": "knn"}},
}
NEW = {
    "unroll": True,
    "model": {"name": "two_towers", "image": {"name": "vit", "representation_size": 8}, "representation_size": 4},
    "init_from": {"first": {"path": "a", "fields": {"representation_size": 3}}},
    "task": {"name": "contrast", "block_size": 2},
    "evals": {"a": {"type": "retrieval", "max_images": 3}, "shown": {"type": "knn"}},
}


def test_an_old_config_gets_todays_names_at_any_depth_and_keeps_its_values():
    assert renames.renamed(OLD) == NEW
    assert renames.renamed(NEW) == NEW


def test_a_name_is_only_old_in_its_own_section():
    config = {"model": {"block": 1, "shown": 2}, "side": {"side_by_side": 3}, "data": {"representation": 4}}
    assert renames.renamed(config) == config


def test_a_user_of_an_old_name_is_told_the_new_one():
    with pytest.raises(ConfigError, match=r"^model\.representation: is called representation_size now$"):
        models.build("vit", variant="Ti/16", representation=8)
    with pytest.raises(ConfigError, match=r'config\.shown: no such field; did you mean "show"'):
        config.check_names(["shown"], ["show"], "config")  # not renamed here


def test_keywords_of_operations_are_renamed_where_the_operation_is_theirs(monkeypatch):
    monkeypatch.setattr(renames, "ARGUMENTS", {("fold", "most"): "max_folds"})
    ops = "decode|fold('most=1', 8, most=2)|other(most=3)|fold('ä', most=4, name='é')"
    wanted = "decode|fold('most=1', 8, max_folds=2)|other(most=3)|fold('ä', max_folds=4, name='é')"
    assert renames.renamed({"data": {"eval": {"ops": ops}}}) == {"data": {"eval": {"ops": wanted}}}
    assert renames.renamed({"ops": "fold(most=", "text": "fold(most=1)"}) == {
        "ops": "fold(most=",
        "text": "fold(most=1)",
    }


@given(st.recursive(st.integers(), lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3)))
def test_anything_else_stays_as_it_is(value):
    assert renames.renamed({"x": value}) == {"x": value}


def test_no_new_name_is_an_old_one():
    names = {path.rpartition(".")[2] for path in renames.FIELDS}
    assert not names & set(renames.FIELDS.values())

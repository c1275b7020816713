"""Questions about scenes with planted faults, and records chosen by their scores."""

import json

import numpy as np
import pytest

from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.data.batches import eval_batches, train_batches
from vitvlm.data.errors import DataError
from vitvlm.data.scenes import QUESTIONS
from vitvlm.jobs import fields
from vitvlm.jobs.setup.data import open_split

CLEAN, PLANTED = "scenes:ask,side=32,train=150,test=8", "scenes:ask,side=32,train=150,test=8,planted=0.3"


@pytest.fixture(scope="module")
def both():
    return sources.open(CLEAN, "train"), sources.open(PLANTED, "train")


def test_each_question_of_a_scene_is_a_record(both):
    scenes = sources.open("scenes:side=32,train=150,test=8", "train")
    clean, _ = both
    assert len(clean) == 600 and len(set(clean.ids)) == 600 and not clean.labelled
    for i in (0, 3, 599):
        example, scene = clean[i], scenes[i // 4]
        np.testing.assert_array_equal(example["image"], scene["image"])
        assert example["question"] == scene["questions"][i % 4] and example["answer"] == scene["answers"][i % 4]
        assert example["question_type"] == QUESTIONS[i % 4] and example["planted"] == "none"
        assert clean.outline(i)["question"] == clean.text(i, "question") == example["question"]


def test_what_is_planted_is_recorded_and_true(both):
    clean, planted = both
    records = [(clean.outline(i), planted.outline(i)) for i in range(len(clean))]
    kinds = [other["planted"] for _, other in records]
    assert 60 < kinds.count("blind") < 120 and 60 < kinds.count("foreign") < 120
    answers = {kind: {own["answer"] for own, _ in records if own["question_type"] == kind} for kind in QUESTIONS}
    for own, other in records:
        if other["planted"] == "none":
            assert own == other
        elif other["planted"] == "foreign":
            assert own["question"] == other["question"] and own["answer"] != other["answer"]
            assert other["answer"] in answers[own["question_type"]]
        elif own["question_type"] == "yes_no":
            words = other["question"].rstrip("?").split()
            assert (other["answer"] == "yes") == (words[2] == words[-1])
        else:
            assert f" {other['answer']} " in other["question"]
    again = sources.open(PLANTED, "train")
    assert [again.outline(i) for i in range(40)] == [other for _, other in records[:40]]
    assert planted.ids == clean.ids


@pytest.mark.parametrize("options", ["planted=0.2", "ask,planted=1.5"])
def test_planting_that_cannot_be_meant(options):
    with pytest.raises(ConfigError, match="planted is a share of the questions"):
        sources.open(f"scenes:{options}", "train")


def lines(path, scores, column="visual_dependency"):
    path.write_text(
        "".join(json.dumps({"id": id_, column: value, "loss": 1.0}) + "\n" for id_, value in scores.items())
    )
    return str(path)


def test_scores_are_a_column_and_choose_records(both, tmp_path):
    source = both[1]
    scores = {id_: float(i % 100) for i, id_ in enumerate(source.ids)}
    written = lines(tmp_path / "scores.jsonl", scores | {"of another split": 3.0})
    np.savez(tmp_path / "scores.npz", id=np.array(list(scores)), visual_dependency=np.array(list(scores.values())))
    for path in (written, str(tmp_path / "scores.npz")):
        whole = sources.scored(source, sources.Scores(path))
        assert whole.name == source.name and [whole[i]["visual_dependency"] for i in (0, 99, 100)] == [0, 99, 0]
        some = sources.scored(source, sources.Scores(path, least=90.0))
        assert len(some) == 60 and all(scores[id_] >= 90 for id_ in some.ids)
        assert some.name.endswith(", 60 of 600 by visual_dependency >= 90")
        half = sources.scored(source, sources.Scores(path, share=0.5, least=70.0))
        assert len(half) == 180 and half.outline(0)["visual_dependency"] >= 70
    ops = "decode|normalize|keep('visual_dependency', 'id')"
    (batch,) = eval_batches(some, ops, 60)
    assert batch["visual_dependency"].dtype == np.float32
    assert batch["visual_dependency"].tolist() == [scores[id_] for id_ in batch["id"]]
    with train_batches(some, ops, 4, 0) as batches:
        assert (next(batches)["visual_dependency"] >= 90).all()


def test_changed_scores_are_changed_data(both, tmp_path):
    source = both[1]
    scores = dict.fromkeys(source.ids, 1.0)
    before = sources.scored(source, sources.Scores(lines(tmp_path / "a.jsonl", scores)))
    scores[source.ids[3]] = 2.0
    after = sources.scored(source, sources.Scores(lines(tmp_path / "a.jsonl", scores)))
    assert before.stamps() != after.stamps()


BAD = {
    "missing": ({}, "has no 'visual_dependency' of 1 of the 600 records of .*, 'train-0-count' among them"),
    "another column": ({"column": "score"}, "line 1: has no 'visual_dependency'; "),
    "nan": ({"train-0-count": float("nan")}, "the 'visual_dependency' of 'train-0-count' is NaN"),
    "text": ({"train-0-count": "high"}, "the 'visual_dependency' of 'train-0-count' is no number"),
    "nothing left": ({"train-0-count": 0.0}, "no record has visual_dependency >= 5; the highest is 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_scores_that_cannot_be_joined(both, tmp_path, case):
    given, message = BAD[case]
    column = given.pop("column", "visual_dependency") if "column" in given else "visual_dependency"
    scores = dict.fromkeys(both[1].ids[1:], 1.0) | given
    with pytest.raises(DataError, match=message):
        sources.scored(both[1], sources.Scores(lines(tmp_path / "s.jsonl", scores, column), least=5.0))


def test_two_scores_of_one_record(both, tmp_path):
    (tmp_path / "s.jsonl").write_text('{"id": "a", "visual_dependency": 1}\n{"id": "a", "visual_dependency": 2}\n')
    with pytest.raises(DataError, match="has two scores of 'a': 1 and 2"):
        sources.scored(both[1], sources.Scores(str(tmp_path / "s.jsonl")))
    with pytest.raises(DataError, match="there is no such file of scores"):
        sources.scored(both[1], sources.Scores(str(tmp_path / "gone.jsonl")))


def test_a_configs_split_is_chosen_by_scores(both, tmp_path):
    scores = {id_: float(i % 4) for i, id_ in enumerate(both[1].ids)}
    path = lines(tmp_path / "s.jsonl", scores)
    data = fields.Data(PLANTED, {}, {})
    split = data.split(dict(split="train", ops="decode|normalize", scores=path, min_score=2.0), "config.data.train")
    assert len(open_split(split)) == 300
    with pytest.raises(ConfigError, match="min_score and keep_share need scores"):
        data.split(dict(split="train", ops="decode", min_score=2.0), "config.data.train")

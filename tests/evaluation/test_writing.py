"""Evaluators of what a model writes, on texts that are given: figures by hand, and what they refuse."""

import csv

import numpy as np
import pytest

from vitvlm import evaluation
from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base
from vitvlm.evaluation.measures import bleu, cider, meteor, ptb, rouge

STOP, PAD = 1, 0
ARRAYS = ("text_tokens", "text_mask", "text_learned")


class Words:
    """A tokenizer of words, as many as it has met."""

    def __init__(self):
        self.known = ["<pad>", "<end>"]

    def ids(self, text):
        self.known += [word for word in dict.fromkeys(text.split()) if word not in self.known]
        return [self.known.index(word) for word in text.split()]

    def decode(self, rows):
        return [" ".join(self.known[i] for i in row) for row in rows]


def written(kind, texts, records, fields=None, room=12, **given):
    """An evaluator of that kind, and a predict function by which example i is answered `texts[i]`."""
    words = Words()

    def batches():
        for start in range(0, len(texts), 3):
            index = np.arange(start, start + 3) % len(texts)
            yield {"index": index, "example_mask": (np.arange(start, start + 3) < len(texts)).astype(np.float32)}

    def predict(name, variables, batch, **how):
        assert (name, how) == ("generate", {"max_new_tokens": room, "stop_ids": (STOP,)})
        ids = np.full((3, room), -1, np.int32)
        for row, index in enumerate(batch["index"]):
            own = [*words.ids(texts[index]), STOP][:room]
            ids[row, : len(own)] = own
        return {"ids": ids}

    evaluator = evaluation.build(
        kind,
        {"max_new_tokens": room, **(fields or {})},
        batches=batches,
        detokenize=words.decode,
        texts=lambda index, name: records[index].get(name),
        stop_ids=(STOP,),
        example_id=lambda index: f"record-{index}",
        **given,
    )
    return evaluator, predict


def run(kind, texts, records, folder, fields=None, **given):
    evaluator, predict = written(kind, texts, records, fields, **given)
    facts = base.Facts("data", "train", list, list, ARRAYS, ("generate",), text=lambda name: records[0].get(name))
    evaluation.check(evaluator, facts, "config.evals.mine")
    result = evaluator.run(predict, {}, folder)
    with np.load(folder / "examples.npz") as saved:
        return result, dict(saved)


def test_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(meteor, "missing", lambda: "METEOR left out: it needs Java")
    texts = ["a red square .", "two dogs", "a cat sat on the mat", ""]
    records = [
        {"captions": ("A red square.", "a square that is red")},
        {"captions": ("two dogs run",)},
        {"captions": ("a cat sits on a mat", "the cat sat")},
        {"captions": ("something",)},
    ]
    result, saved = run("captions", texts, records, tmp_path)
    known = [[ptb.words(text) for text in row["captions"]] for row in records]
    own = [ptb.words(text) for text in texts]
    np.testing.assert_array_equal(saved["cider"], cider.cider(own, known))
    assert result.metrics["rouge_l"] == pytest.approx(rouge.rouge_l(own, known).mean())
    assert result.metrics["bleu4"] == pytest.approx(bleu.bleu(own, known).corpus[3])
    assert result.metrics["cider_low"] < result.metrics["cider"] < result.metrics["cider_high"]
    assert (result.metrics["n"], result.metrics["words"]) == (4, (3 + 2 + 6) / 4)
    assert "METEOR left out: it needs Java" in result.protocol and "1 to 2 each" in result.protocol
    assert saved["answer"].tolist() == texts and saved["id"][1] == "record-1"
    assert saved["truth"][0] == "A red square. / a square that is red"


@pytest.mark.parametrize(
    ("rule", "expected"), [("exact", [1, 1, 0, 1]), ("relaxed", [1, 0, 1, 1]), ("vqa", [1.0, 1.0, 0.0, 0.3])]
)
def test_questions(tmp_path, rule, expected):
    texts = ["Red", "two.", "104", "yes no yes no yes no yes no yes no yes no yes"]
    truths = [
        ["red"] * 10,
        ["two"] * 9 + ["2"],
        ["100"] * 10,
        ["yes no yes no yes no yes no yes no yes no"] + ["no"] * 9,
    ]
    records = [{"answer": tuple(own), "types": "abc"[i % 2], "question": f"what {i}?"} for i, own in enumerate(truths)]
    result, saved = run("questions", texts, records, tmp_path, {"rule": rule, "types": "types"})
    np.testing.assert_allclose(saved["score"], expected)
    assert result.metrics["accuracy"] == pytest.approx(np.mean(expected))
    assert saved["type"].tolist() == ["a", "b", "a", "b"] and saved["question"][3] == "what 3?"
    with (tmp_path / "types.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["type"] for row in rows] == ["a", "b"]
    assert float(rows[1]["score"]) == pytest.approx((expected[1] + expected[3]) / 2, abs=1e-4)
    assert "1 texts were cut there" in result.protocol and "at most 12 tokens" in result.protocol


def test_pope_names_the_parser_of_each_figure(tmp_path):
    texts = ["yes", "No.", "There is not", "yes and no", "no"]
    records = [{"answer": each} for each in ("yes", "no", "no", "yes", "yes")]
    result, saved = run("pope", texts, records, tmp_path)
    assert result.metrics["accuracy_first_sentence"] == pytest.approx(3 / 5)
    assert result.metrics["accuracy_exact"] == pytest.approx(1 / 5)
    assert result.metrics["accuracy_one_of_both"] == pytest.approx(2 / 5)
    assert result.metrics["unknown_share_one_of_both"] == pytest.approx(2 / 5)
    assert result.metrics["recall_first_sentence"] == pytest.approx(1 / 3)
    assert saved["read_one_of_both"].tolist() == ["yes", "no", "unknown", "unknown", "no"]
    np.testing.assert_array_equal(saved["score"], [1, 1, 1, 0, 0])
    assert all(name in result.protocol for name in ("POPE's authors", "lmms-eval", "VLMEvalKit"))
    alone, _ = run("pope", texts, records, tmp_path, {"parsers": ("exact",)})
    assert {name for name in alone.metrics if "first" in name or "both" in name} == set()


def test_chair(tmp_path):
    texts = ["a man and two dogs", "a cat on a couch with a dog", "the sky"]
    records = [
        {"objects": ("person",), "captions": ("a man with a dog",)},
        {"objects": ("cat", "couch", "tv")},
        {"objects": ("bird",)},
    ]
    result, saved = run("chair", texts, records, tmp_path)
    assert result.metrics["chair_i"] == pytest.approx(1 / 5) and result.metrics["chair_s"] == pytest.approx(1 / 3)
    assert result.metrics["recall"] == pytest.approx(4 / 6)
    assert saved["faithful"].tolist() == [1, 0, 1] and saved["truth"][0] == "dog, person"
    shapes = {"square": [], "circle": ["disc"]}
    records = [{"objects": ("a small red square", "circle")}, {"objects": ("square",)}]
    result, _ = run(
        "chair", ["a disc", "squares and a circle"], records, tmp_path, {"synonyms": shapes, "references": ""}
    )
    assert result.metrics["chair_i"] == pytest.approx(1 / 3) and "2 of the config" in result.protocol


@pytest.mark.parametrize(
    ("kind", "fields", "record", "message"),
    [
        ("captions", {}, {"caption": "a"}, "references: records of data have no 'captions'; did you mean .caption"),
        ("questions", {"types": "kind"}, {"answer": "a"}, "types: records of data have no 'kind'"),
        ("questions", {"rule": "vqa"}, {"answer": "a"}, "rule: 'vqa' compares with several people's"),
        ("questions", {"rule": "exac"}, {"answer": "a"}, "rule: 'exac'; did you mean .exact"),
        ("pope", {"parsers": ("strict",)}, {"answer": "yes"}, "parsers: 'strict'"),
        ("pope", {"parsers": ()}, {"answer": "yes"}, "parsers: none"),
        ("chair", {"objects": "", "references": ""}, {}, "objects: neither"),
        ("chair", {}, {"objects": ("unicorn",), "captions": "a"}, "objects: 'unicorn' of data is no known object"),
        ("captions", {"max_new_tokens": 0}, {"captions": "a"}, "max_new_tokens: 0"),
    ],
)
def test_what_they_refuse(tmp_path, kind, fields, record, message):
    with pytest.raises(ConfigError, match=message):
        run(kind, ["a"], [record], tmp_path, fields)


def test_data_without_prompts(tmp_path):
    evaluator, _ = written("captions", ["a"], [{"captions": "a"}])
    for arrays, message in [((), "no prompts to write after"), ((*ARRAYS, "text_segments"), "leave pack out")]:
        with pytest.raises(ConfigError, match=message):
            evaluation.check(evaluator, base.Facts("data", "t", list, list, arrays, ("generate",)), "config.evals.mine")


def test_a_record_without_a_truth_is_named(tmp_path):
    with pytest.raises(ValueError, match="record-1: has no 'captions' to judge by"):
        run("captions", ["a", "b"], [{"captions": "a"}, {}], tmp_path)

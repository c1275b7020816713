"""Choices by likelihood, and how much answers depend on images, of records whose truth is known."""

import json

import numpy as np
import pytest

from vitvlm import evaluation
from vitvlm.core.config import ConfigError
from vitvlm.data import operations, sources
from vitvlm.data.sources.scored import Scores, scored
from vitvlm.evaluation import base, dependency

CHOICES = [("a cat", "a dog"), ("red", "blue", "green"), ("yes", "no", "maybe"), ("one", "two")]
VALUES = np.array([[-1.0, -2.0, 0.0], [-6.0, -5.0, -7.0], [-3.0, -3.0, -9.0], [-1.0, -9.0, 0.0]])
TOKENS = np.array([[2, 2, 0], [3, 1, 1], [1, 1, 1], [1, 1, 0]])


def batches():
    learned = (np.arange(4) < TOKENS[..., None]).astype(np.int32)
    tokens = np.broadcast_to(np.arange(4)[:, None, None] * 10 + np.arange(3)[:, None], learned.shape)
    yield {
        "index": np.arange(4),
        "example_mask": np.ones(4),
        "text_tokens": tokens,
        "text_mask": learned,
        "text_learned": learned,
    }


def predict(name, variables, batch):
    assert name == "log_likelihood" and batch["text_tokens"].ndim == 2
    rows = batch["index"], batch["text_tokens"][:, 0] % 10
    return {"log_likelihood": VALUES[rows], "learned_tokens": TOKENS[rows]}


def texts(index, name):
    return {"choices": CHOICES[index], "answer": CHOICES[index][-1]}.get(name)


def choose(fields, folder):
    evaluator = evaluation.build("multiple_choice", fields, batches=batches, texts=texts)
    facts = base.Facts(
        "data", "t", list, list, ("text_learned",), ("log_likelihood",), text=lambda name: texts(0, name)
    )
    evaluation.check(evaluator, facts, "config.evals.mine")
    return evaluator.run(predict, {}, folder)


def test_multiple_choice(tmp_path):
    result = choose({}, tmp_path)
    with np.load(tmp_path / "examples.npz") as saved:
        np.testing.assert_array_equal(saved["score"], [1, 0, 0, 1])  # the third is a tie
        np.testing.assert_allclose(saved["margin"], [1, -1, 0, 8])
        assert saved["answer"].tolist() == ["a cat", "blue", "yes", "one"] and saved["truth"][1] == "red"
    assert result.metrics["accuracy"] == 0.5 and result.metrics["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    by_tokens = choose({"normalize": "tokens"}, tmp_path)
    assert by_tokens.metrics["accuracy"] == 0.75 and "log-likelihood per token" in by_tokens.protocol
    last = choose({"right": "answer"}, tmp_path)
    assert last.metrics["accuracy"] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normalize": "token"}, r"normalize: 'token'; did you mean .tokens"),
        ({"candidates": "options"}, "candidates: records of data have no 'options'"),
        ({"right": "label"}, "right: records of data have no 'label'"),
    ],
)
def test_multiple_choice_refuses(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        choose(fields, tmp_path)


def test_compositionality_by_likelihood(tmp_path):
    fields = {"kinds": ("swap", "replace"), "by": "likelihood"}
    evaluator = evaluation.build("compositionality", fields, batches=batches)
    result = evaluator.run(predict, {}, tmp_path)
    assert result.metrics["swap"] == 0.5 and result.metrics["replace"] == 1.0 and result.metrics["all_kinds"] == 0.5
    assert "log-likelihood of the caption" in result.protocol
    facts = base.Facts("data", "t", list, list, ("text_tokens",), ())
    with pytest.raises(ConfigError, match="no candidates: add supervise_each"):
        evaluation.check(evaluator, facts, "config.evals.mine")
    with pytest.raises(ConfigError, match="by: 'likeli'"):
        fields["by"] = "likeli"
        evaluation.check(evaluation.build("compositionality", fields, batches=batches), facts, "config.evals.mine")


OPS = "decode|resize(16)|normalize|supervise_each('emoji', 40, 'choices', 5, image_tokens=2)"


def test_candidates_are_supervised_one_by_one():
    source = sources.open("scenes:side=16,test=3", "test")
    example = operations.parse(OPS)(source[0], np.random.default_rng(0))
    assert example["text_tokens"].shape == (5, 40) and example["image_index"].shape == (5, 40)
    for place, text in enumerate(example["choices"]):
        alone = operations.parse(OPS.replace("supervise_each", "supervise").replace(", 'choices', 5", ", answer='it'"))
        expected = alone({**source[0], "it": text}, np.random.default_rng(0))
        for name in ("text_tokens", "text_mask", "text_learned", "image_index"):
            np.testing.assert_array_equal(example[name][place], expected[name])
    fewer = operations.parse(OPS)({**source[0], "choices": ("a red square", "", "x")}, np.random.default_rng(0))
    assert fewer["text_mask"].any(axis=1).tolist() == [True, False, True, False, False]
    assert (fewer["image_index"][1] == -1).all()


PLANTED = "scenes:ask,side=16,test=150,planted=0.3"


def questions():
    return sources.open(PLANTED, "test")


def test_planted_records_are_found_by_one_who_knows_the_scenes(tmp_path):
    """A model that sees the truth, and without an image knows what questions tell: a test of the score's way."""
    source = questions()
    planted = np.array([source.text(i, "planted") for i in range(len(source))])
    assert {"none", "blind", "foreign"} == set(planted)
    noise = np.random.default_rng(0).normal(0, 0.2, (2, len(source)))

    def batches():
        for start in range(0, len(source), 64):
            index = np.arange(start, min(start + 64, len(source)))
            yield {"index": index, "example_mask": np.ones(len(index)), "image": np.ones((len(index), 2, 2, 3))}

    def predict(name, variables, batch):
        index, seen = batch["index"], batch["image_mask"][:, 0] > 0
        told = np.where(planted[index] == "blind", -0.1, -1.5)
        known = np.select([planted[index] == "blind", planted[index] == "foreign"], [-0.1, -4.0], -0.1)
        return {
            "log_likelihood": np.where(seen, known, told) + noise[seen.astype(int), index],
            "learned_tokens": np.full(len(index), 2),
        }

    evaluator = evaluation.build(
        "visual_dependency",
        {"planted": "planted"},
        batches=batches,
        texts=source.text,
        example_id=source.ids.__getitem__,
    )
    result = evaluator.run(predict, {}, tmp_path)
    assert min(result.metrics[f"auroc{end}"] for end in ("", "_blind", "_foreign")) > 0.95
    rows = [json.loads(line) for line in (tmp_path / dependency.FILE).read_text().splitlines()]
    assert [row["id"] for row in rows] == list(source.ids)
    assert rows[0]["visual_dependency"] == pytest.approx(rows[0]["log_likelihood"] - rows[0]["blind_log_likelihood"])
    kept = scored(source, Scores(str(tmp_path / dependency.FILE), least=0.7))
    left = [kept.text(i, "planted") for i in range(len(kept))]
    assert 0.6 < len(kept) / len(source) < 0.75 and left.count("none") / len(left) > 0.95
    of_npz = scored(source, Scores(str(tmp_path / "examples.npz"), least=0.7))
    assert list(of_npz.ids) == list(kept.ids)


def test_auroc_is_scikit_learns():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 6, 40) / 3, rng.integers(0, 5, 70) / 3
    labels = np.r_[np.ones(40), np.zeros(70)]
    assert dependency.auroc(positive, negative) == pytest.approx(roc_auc_score(labels, np.r_[positive, negative]))
    with pytest.raises(ValueError, match="0 positive and 2 negative"):
        dependency.auroc(np.array([]), np.ones(2))

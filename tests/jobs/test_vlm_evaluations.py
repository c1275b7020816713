"""Evaluations of a vision-language model by its config: answers, grounding, and the trial with planted records."""

import csv
import json

import numpy as np
import pytest

from vitvlm.core.config import ConfigError
from vitvlm.jobs import planted
from vitvlm.jobs.evaluation import evaluate

OPS = "decode|resize(16)|normalize|supervise('emoji', 72, image_tokens=4)"
SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "scan": False}
HELD_OUT = {"type": "perplexity", "grounding": ("blind",), "at_end": False}
QUESTIONS = {"type": "questions", "at_end": False, "types": "question_type", "max_new_tokens": 3, "max_images": 6}
TRAIN = {"source": "scenes:ask,side=16,train=6,test=4,planted=0.5", "split": "train", "ops": OPS}
CONFIG = {
    "seed": 0,
    "total": "3 steps",
    "batch_size": 4,
    "task": {"name": "next_token"},
    "model": {
        "name": "vlm",
        "image": {"name": "vit", "patch_size": 8, "image_size": 16, **SIZES},
        "connector": {"name": "mlp"},
        "text": {"name": "decoder", "vocab_size": 2000, "length": 80, **SIZES},
    },
    "data": {
        "source": "scenes:ask,side=16,train=6,test=4",
        "train": TRAIN,
        "eval": {"split": "test", "ops": OPS},
        "workers": 0,
    },
    "optimizer": {"name": "adamw"},
    "schedule": {"name": "constant", "peak": 1e-2},
    "evals": {"answers": QUESTIONS, "held_out": HELD_OUT},
    "checkpoint": {"every": "3 steps", "keep_last": 1},
    "log": {"every": 1},
}


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    return folder, planted.run(CONFIG, folder, keep=0.5)


def saved(folder, *parts):
    (place,) = folder.glob("evaluations/*")
    return place.joinpath(*parts)


def test_a_training_reports_how_it_does_with_other_images(trial):
    folder, results = trial
    metrics = results["trained"]["all"]["answers"]
    for condition in ("swapped", "blind", "mean", "noise"):
        assert {f"grounding_{condition}{end}" for end in ("", "_drop", "_p", "_changed")} <= set(metrics)
    assert metrics["grounding_uses_image"] in (0, 1) and metrics["n"] == 16
    likelihood = results["trained"]["all"]["held_out"]
    assert likelihood["grounding_blind"] != likelihood["log_likelihood"] and "grounding_mean" not in likelihood
    result = json.loads(saved(folder / "all", "answers", "result.json").read_text())
    assert "the image is used" in result["protocol"] and "exact match" in result["protocol"]
    with saved(folder / "all", "answers", "grounding", "drops.csv").open() as file:
        types = {row["type"] for row in csv.DictReader(file)}
    assert types == {"all", "count", "colour", "relation", "yes_no"}
    page = saved(folder / "all", "answers", "page.html").read_text()
    assert "the 3 worst and the 3 best" in page and "data:image/webp" in page


def test_attention_and_weights_of_the_connector(trial):
    with saved(trial[0] / "all", "answers", "grounding", "attention.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["layer"], row["head"]) for row in rows] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert all(0 < float(row["mass"]) < 1 and 0 < float(row["share"]) < 0.5 for row in rows)
    assert "connector/" in saved(trial[0] / "all", "answers", "grounding", "weights.csv").read_text()


def test_records_are_scored_and_chosen_by_their_scores(trial):
    folder, results = trial
    path = saved(folder / "all", "visual_dependency", "visual_dependency.jsonl")
    scores = {row["id"]: row["visual_dependency"] for row in map(json.loads, path.read_text().splitlines())}
    assert len(scores) == 24 and len(set(scores.values())) > 12
    assert 0 <= results["scores"]["auroc"] <= 1
    for way in ("chosen", "random"):
        config = json.loads((folder / way / "config.json").read_text())
        assert config["data"]["train"]["keep_share"] == 0.5 and config["total"] == "3 steps"
        assert set(results["gains"]["answers"]) == {"over all", "over random"}
    assert json.loads((folder / planted.RESULTS).read_text())["keep"] == 0.5
    assert "chosen over all" in [column.header for column in planted.table(results).columns]


def test_likelihood_chooses_among_captions(trial):
    """Pairs of our scenes by the model's likelihood, as evaluate.py reaches them."""
    ops = "decode|resize(16)|normalize|supervise_each('emoji', 72, 'choices', 5, image_tokens=4)"
    data = {"source": "scenes:side=16,test=4", "split": "test", "ops": ops}
    changes = {"evals": {"compositionality": {"by": "likelihood", "data": data, "grounding": ()}}}
    changes["evals"]["multiple_choice"] = {"data": data, "grounding": ("blind",), "max_images": 0}
    pairs, choice = evaluate.evaluate(trial[0] / "all", ["compositionality", "multiple_choice"], changes=changes)
    assert pairs.result.metrics["n"] == 4 and 0 <= pairs.result.metrics["swap_attribute"] <= 1
    assert choice.result.metrics["accuracy"] == pairs.result.metrics["all_kinds"]
    assert choice.result.metrics["chance"] == 0.2 and "grounding_blind_drop" in choice.result.metrics
    examples = saved(trial[0] / "all", "multiple_choice", "examples.npz")
    blind = saved(trial[0] / "all", "multiple_choice", "grounding", "blind", "examples.npz")
    with np.load(examples) as own, np.load(blind) as other:
        assert np.abs(own["values"] - other["values"]).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grounding": ("blinded",)}, r"evals\.answers\.grounding: 'blinded'; did you mean .blind"),
        ({"swap_within": "kind"}, r"evals\.answers\.swap_within: records of .* have no 'kind'"),
        ({"types": "kind"}, r"evals\.answers\.types: records of .* have no 'kind'"),
        ({"max_new_tokens": 20}, "max_new_tokens: 20 after prompts of up to 72; the model has 80 positions"),
    ],
)
def test_what_is_refused(trial, changes, message):
    with pytest.raises(ConfigError, match=message):
        evaluate.evaluate(trial[0] / "all", ["answers"], changes={"evals": {"answers": changes}})


def test_a_trial_that_could_not_be_fair(tmp_path):
    for changes, message in [({"total": "2 epochs"}, "'2 epochs' changes with the records"), ({}, "keep: 1")]:
        with pytest.raises(ConfigError, match=message):
            planted.run(CONFIG | changes, tmp_path, keep=0.5 if changes else 1)

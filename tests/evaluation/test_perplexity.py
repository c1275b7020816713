"""Perplexity against sums by hand, and its interval against the spread of what it estimates."""

import math

import numpy as np
import pytest

from vitvlm import evaluation
from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base, bootstrap

LIKELIHOOD = np.array([-10.0, -2.0, -30.0, -1.0, 0.0])
TOKENS, WORDS, BYTES = np.array([5, 2, 12, 1, 9]), np.array([4, 1, 8, 1, 9]), np.array([20, 7, 50, 3, 9])


def batches():
    for start in (0, 3):
        rows = [min(i, 4) for i in range(start, start + 3)]
        mask = np.array([i < 4 for i in range(start, start + 3)], np.float32)
        yield {
            "index": np.arange(start, start + 3),
            "example_mask": mask,
            "learned_words": WORDS[rows],
            "learned_bytes": BYTES[rows],
        }


def predict(name, variables, batch):
    rows = np.minimum(batch["index"], 4)
    return {"log_likelihood": LIKELIHOOD[rows], "learned_tokens": TOKENS[rows]}


def test_figures_are_of_all_examples_together(tmp_path):
    result = evaluation.build("perplexity", {}, batches=batches).run(predict, {}, tmp_path)
    metrics = result.metrics
    assert metrics["log_likelihood"] == pytest.approx(-43 / 20)
    assert metrics["perplexity"] == pytest.approx(math.exp(43 / 20))
    assert metrics["word_perplexity"] == pytest.approx(math.exp(43 / 14))
    assert metrics["bits_per_byte"] == pytest.approx(43 / 80 / math.log(2))
    assert (metrics["tokens"], metrics["words"], metrics["bytes"], metrics["n"]) == (20, 14, 80, 4)
    assert -2.6 < metrics["log_likelihood_low"] < metrics["log_likelihood"] < metrics["log_likelihood_high"] <= -1
    assert "20 learned tokens (14 words, 80 bytes)" in result.protocol
    with np.load(tmp_path / "examples.npz") as kept:
        np.testing.assert_array_equal(kept["log_likelihood"], LIKELIHOOD[:4])


def test_the_interval_covers_what_it_estimates():
    """A ratio of sums, of examples of very different lengths: the interval holds the truth as often as it says."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        sizes = rng.integers(1, 30, 120)
        values = -sizes * rng.normal(2.0, 0.5, 120)
        low, high = bootstrap.ratio(values, sizes, resamples=200)[1:]
        held += low <= -2.0 <= high
    assert 0.88 <= held / 200 <= 0.99


@pytest.mark.parametrize(
    ("arrays", "message"),
    [(("text_tokens",), "no language: add supervise"), (("learned_bytes", "text_segments"), "leave pack out")],
)
def test_data_that_it_cannot_judge(arrays, message):
    evaluator = evaluation.build("perplexity", {}, batches=batches)
    facts = base.Facts("test", "train", lambda: None, lambda: None, arrays, ("log_likelihood",))
    with pytest.raises(ConfigError, match=message):
        evaluation.check(evaluator, facts, "config.evals.held_out")

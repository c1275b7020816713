"""The benchmark of a LLaVA at toy size: both sides are one model, and what was timed is told."""

import numpy as np
import pytest

from vitvlm.core.config import ConfigError
from vitvlm.jobs.benchmarks import generation, image_prefix

SIZES = image_prefix.Sizes(
    image_width=16, image_depth=2, image_heads=2, patch=4, side=12, width=24, depth=2, heads=4, kv_heads=2,
    mlp_width=20, vocabulary=50,
)  # fmt: skip
RUN = {"weights": "float32", "batch_sizes": [2], "train_batch": 3, "text": 5, "tokens": 3, "rounds": 2}


def test_both_sides_are_one_model_and_take_turns():
    measured = image_prefix.measure(SIZES, **RUN)
    ours, theirs = measured.steps
    assert (ours.system, theirs.system) == ("float32", "transformers")
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-4) and measured.same_tokens == 1
    assert len(ours.seconds) == len(theirs.seconds) == 2 and (measured.batch_size, measured.length) == (3, 9 + 5)
    cases = [(each.system, each.batch_size, len(each.first)) for each in measured.writing.measured]
    assert cases == [(name, 2, 2) for name in ("float32", "transformers")]
    table = generation.table(measured.writing)
    assert table.row_count == 2 and "9 image tokens: 3 tokens after prompts of 14" in table.title
    assert image_prefix.training_table(measured).row_count == 2
    found = image_prefix.as_json(measured)
    assert found["sizes"]["vocabulary"] == 50 and len(found["writing"]["measured"]) == 2


def test_rates():
    steps = tuple(
        image_prefix.Steps(name, seconds, 1.0) for name, seconds in (("float32", (1.0, 2.0)), ("transformers", (3, 3)))
    )
    measured = image_prefix.Measured(SIZES, 2, 10, steps, generation.Report({}, "x", 4, 10, ()), 1.0)
    ours, theirs = image_prefix.training_rows(measured)
    assert ours == ("float32", "15 [12, 18]", "1500 [1250, 1750]", "2.25 [1.88, 2.62]")
    assert theirs == ("transformers", "7 [7, 7]", "3000 [3000, 3000]", "-")


def test_sides_that_are_not_one_model_are_an_error():
    loaded, theirs = image_prefix.models(SIZES)
    theirs.lm_head.weight.data.mul_(20)
    images, places = np.ones((1, 1, 12, 12, 3), np.float32), np.array([[49] * 9 + [5, 6, 7]])
    with pytest.raises(ConfigError, match=r"the losses of the first step are .*: not one model"):
        image_prefix.train(loaded, theirs, images, places, 9, rounds=1)
    with pytest.raises(ConfigError, match=r"--weights: 'float'; did you mean .float32."):
        image_prefix.measure(SIZES, **RUN | {"weights": "float"})

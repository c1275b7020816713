"""The gap of images: figures of a model whose losses are known, and when it warns."""

import re

import numpy as np
import pytest

from vitvlm import evaluation
from vitvlm.core.config import ConfigError
from vitvlm.evaluation import bootstrap

N = 21
COLOUR = np.random.default_rng(0).permutation(N) % 3
TOKENS = np.random.default_rng(1).integers(1, 5, N)
HARD = np.random.default_rng(2).random(N)


def example(i, colour=COLOUR):
    return {"image": np.eye(3, dtype=np.float32)[colour[i]] * np.ones((2, 2, 1), np.float32)}


def batches(colour=COLOUR):
    for start in range(0, N, 8):
        index = np.arange(start, start + 8)
        real, index = index < N, np.minimum(index, N - 1)
        images = np.stack([example(i, colour)["image"] for i in index])
        yield {"index": index, "example_mask": real.astype(np.float32), "image": images}


def predict(name, variables, batch):
    """Loses HARD nats per token, 1 more with an image of another colour, 2 more with none."""
    assert name == "log_likelihood"
    index = batch["index"]
    wrong = batch["image"].mean(axis=(1, 2)).argmax(axis=1) != COLOUR[index]
    extra = np.where(batch["image_mask"][:, 0] > 0, wrong * 1.0, 2.0)
    return {
        "log_likelihood": -(HARD[index] + variables["looks"] * extra) * TOKENS[index],
        "learned_tokens": TOKENS[index],
    }


def gap(**fields):
    return evaluation.build("image_gap", {}, **{"batches": batches, "images": example} | fields)


def test_losses_are_per_token_and_gaps_are_paired(tmp_path):
    result = gap().run(predict, {"looks": 1.0}, tmp_path)
    metrics, right = result.metrics, (HARD * TOKENS).sum() / TOKENS.sum()
    assert {name for name, _, _ in evaluation.with_intervals(metrics)} == set(gap().metrics)
    assert metrics["loss_right"] == pytest.approx(right) and metrics["n"] == N
    assert metrics["loss_none"] == pytest.approx(right + 2) and metrics["loss_other"] == pytest.approx(right + 1)
    for name, value in (("gap_other", 1), ("gap_none", 2)):  # the same for every record, so the interval is a point
        assert [metrics[name + end] for end in ("_low", "", "_high")] == pytest.approx([value] * 3)
    assert f"n={N}" in result.protocol and "; the image is used: another's image costs 1 [1, 1]" in result.protocol
    with np.load(tmp_path / bootstrap.EXAMPLES) as saved:
        np.testing.assert_allclose(saved["loss_none"] - saved["loss_right"], 2 * TOKENS)
    assert gap().warning(metrics, {}) == ""


def test_images_are_swapped_within_a_type(tmp_path):
    """Records of one colour alone have nobody to exchange images with: both losses' difference leaves them out."""
    result = gap(type_of=lambda i: "red" if COLOUR[i] == 0 else "").run(predict, {"looks": 1.0}, tmp_path)
    assert result.metrics["gap_other"] == pytest.approx(1) and result.metrics["n"] == N
    others = COLOUR != 0
    expected = ((HARD + 1) * TOKENS)[others].sum() / TOKENS[others].sum()
    assert result.metrics["loss_other"] == pytest.approx(expected)
    assert f"; {(~others).sum()} examples had no other image to be swapped with" in result.protocol
    with np.load(tmp_path / bootstrap.EXAMPLES) as saved:
        np.testing.assert_array_equal(np.isnan(saved["loss_other"]), ~others)


def test_where_all_images_are_the_same(tmp_path):
    same = np.zeros(N, int)
    given = {"batches": lambda: batches(same), "images": lambda i: example(i, same)}
    metrics = gap(**given).run(predict, {"looks": 1.0}, tmp_path).metrics
    assert "gap_other" not in metrics and metrics["gap_none"] == pytest.approx(
        2 - np.average(COLOUR != 0, weights=TOKENS)
    )
    assert gap().warning(metrics, {}) == ""


def test_a_model_that_does_not_look_is_warned_of(tmp_path):
    result = gap().run(predict, {"looks": 0.0}, tmp_path)
    assert result.metrics["gap_other"] == result.metrics["gap_none"] == 0
    assert "NO EVIDENCE that the image is used" in result.protocol
    said = gap().warning(result.metrics, {})
    assert said == (
        "the gap between the right image and others is closed: another's image costs 0 [0, 0], no more than chance; "
        "no image costs 0 [0, 0], no more than chance (nats per token)"
    )


def figures(other, none, width=0.01):
    return {
        f"gap_{name}{end}": value + width * side
        for name, value in (("other", other), ("none", none))
        for end, side in (("_low", -1), ("", 0), ("_high", 1))
    }


@pytest.mark.parametrize(
    ("now", "before", "said"),
    [
        (figures(1.0, 2.0), {}, None),
        (figures(1.0, 2.0), {0: figures(0.0, 0.0), 5: figures(1.9, 3.9)}, None),
        (figures(1.0, 2.0), {5: figures(2.1, 3.9), 9: figures(1.5, 1.0)}, "another's image costs 1, .* 2.1 of step 5"),
        (figures(1.0, 2.0), {5: figures(1.0, 4.5)}, "no image costs 2, less than half of the 4.5 of step 5"),
        (figures(1.0, 0.05, 0.1), {}, r"no image costs 0.05 \[-0.05, 0.15\], no more than chance"),
        (figures(-1.0, 2.0), {}, r"another's image costs -1 \[-1.01, -0.99\]"),
        (figures(1.0, 2.0), {5: {"n": 8.0}}, None),
    ],
)  # fmt: skip
def test_a_gap_that_closes_is_a_warning(now, before, said):
    found = gap().warning(now, before)
    assert "\n" not in found
    if said is None:
        assert found == ""
    else:
        assert re.search(said, found) and found.count("costs") == 1


def test_what_it_needs():
    with pytest.raises(ConfigError, match=r"needs images .*which this job does not have"):
        evaluation.build("image_gap", {}, batches=batches)
    facts = evaluation.Facts(
        "x", "x", lambda: [], lambda: [], arrays=("text_segments",), predictions=("log_likelihood",)
    )
    with pytest.raises(ConfigError, match=r"evals\.gap\.batches: rows of several records: leave pack out"):
        evaluation.check(gap(), facts, "evals.gap")

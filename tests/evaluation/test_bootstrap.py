import numpy as np
import pytest
import scipy.stats

from vitvlm.evaluation import bootstrap


def test_interval_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(size=300)
    ours = bootstrap.mean(values, resamples=4000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.estimate == pytest.approx(values.mean(), rel=1e-12)
    assert abs(ours.low - theirs.low) < 0.1 * width and abs(ours.high - theirs.high) < 0.1 * width


def test_few_distinct_values_give_the_same_interval_as_drawing_examples():
    correct = np.arange(500) % 5 > 0
    drawn = np.array([np.random.default_rng(seed).choice(correct, 500).mean() for seed in range(4000)])
    ours = bootstrap.mean(correct, resamples=4000)
    np.testing.assert_allclose([ours.low, ours.high], np.quantile(drawn, [0.025, 0.975]), atol=0.004)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(400):
        estimate = bootstrap.mean(rng.random(200) < 0.7, seed=seed, resamples=500)
        hits += estimate.low <= 0.7 <= estimate.high
    assert 0.91 < hits / 400 < 0.98


def test_paired_difference_is_tighter_and_finds_what_two_intervals_miss():
    rng = np.random.default_rng(0)
    hard = rng.random(1000)
    weaker, better = hard < 0.70, hard < 0.73
    paired = bootstrap.difference(better, weaker)
    apart = bootstrap.mean(better), bootstrap.mean(weaker)
    assert paired.estimate == pytest.approx(better.mean() - weaker.mean())
    assert paired.low > 0
    assert apart[0].low < apart[1].high
    assert bootstrap.difference(weaker, weaker) == (0, 0, 0)


def test_same_seed_same_interval():
    values = np.random.default_rng(0).random(100)
    assert bootstrap.mean(values, seed=3) == bootstrap.mean(values, seed=3) != bootstrap.mean(values, seed=4)


def test_saved_results_compare_only_over_the_same_examples(tmp_path):
    index = np.arange(50)
    right = index % 2 == 0
    for name, rows, correct in [("a", index, right), ("b", index, ~right), ("c", index + 1, right)]:
        bootstrap.save_examples(tmp_path / name, rows, correct=correct)
    assert bootstrap.compare(tmp_path / "a", tmp_path / "a").estimate == 0
    assert bootstrap.compare(tmp_path / "a", tmp_path / "b").estimate == pytest.approx(0.0)
    assert bootstrap.compare(tmp_path / "a", tmp_path / "b").high > 0.1
    with pytest.raises(ValueError, match="different examples"):
        bootstrap.compare(tmp_path / "a", tmp_path / "c")


def test_no_examples_is_an_error():
    with pytest.raises(ValueError, match="no examples"):
        bootstrap.mean(np.array([]))

"""Percentile bootstrap over examples: how sure a mean, or the difference of two means, is."""

import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

RESAMPLES = 2000
CONFIDENCE = 0.95
EXAMPLES = "examples.npz"

Values = Float[np.ndarray, " n"] | Int[np.ndarray, " n"] | Bool[np.ndarray, " n"]


class Interval(NamedTuple):
    """An estimate between its bounds; a difference whose interval leaves out 0 is unlikely to be chance."""

    estimate: float
    low: float
    high: float


def mean(values: Values, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE) -> Interval:
    """The mean of per-example values with its percentile interval (Efron, 1979), the examples resampled.

    Raises ValueError if there is no example.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        raise ValueError("no examples to resample")
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled_means(values, seed, resamples), [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def ratio(
    values: Values, sizes: Values, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """sum(values) / sum(sizes), such as a sum per token, with its percentile interval, the examples resampled.

    Raises ValueError if there is no example.
    """
    values, sizes = (np.asarray(each, np.float64) for each in (values, sizes))
    if not len(values):
        raise ValueError("no examples to resample")
    rng, n, tail = np.random.default_rng(seed), len(values), (1 - confidence) / 2
    drawn = (rng.integers(n, size=n) for _ in range(resamples))
    low, high = np.quantile([values[i].sum() / sizes[i].sum() for i in drawn], [tail, 1 - tail])
    return Interval(float(values.sum() / sizes.sum()), float(low), float(high))


def difference(
    first: Values, second: Values, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """mean(first) - mean(second) over the SAME examples: each example is drawn with both of its values.

    Far tighter than comparing two intervals, because what makes an example hard is shared.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values of {len(first)} and {len(second)} examples; both must hold the same examples")
    return mean(first - second, seed, resamples, confidence)


def sign_test(first: Values, second: Values, seed: int = 0, resamples: int = 10_000) -> float:
    """Probability of means at least as far apart if each example's two values were exchanged by chance (two-sided).

    It is Fisher's paired randomization test; of values 0 and 1, McNemar's exact test up to the drawing. A p-value is
    never below 1 / (resamples + 1).
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values of {len(first)} and {len(second)} examples; both must hold the same examples")
    differing = (first - second)[first != second]
    if not len(differing):
        return 1.0
    rng, seen = np.random.default_rng(seed), abs(differing.sum()) * (1 - 1e-12)
    sizes, counts = np.unique(np.abs(differing), return_counts=True)
    if len(sizes) <= 64:  # of equal differences only the number that is positive counts
        sums = (2 * rng.binomial(counts, 0.5, size=(resamples, len(sizes))) - counts) @ sizes
    else:
        sums = np.array([rng.choice((-1.0, 1.0), len(differing)) @ differing for _ in range(resamples)])
    return float((1 + np.sum(np.abs(sums) >= seen)) / (resamples + 1))


def save_examples(folder: pathlib.Path, index: Int[np.ndarray, " n"], **arrays: np.ndarray) -> pathlib.Path:
    """Writes per-example results, so that a later run can be compared with this one example by example."""
    path = pathlib.Path(folder) / EXAMPLES
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, index=index, **arrays)
    return path


def compare(first: pathlib.Path, second: pathlib.Path, key: str = "correct", **options: float) -> Interval:
    """The paired difference of two evaluations' saved per-example results (folders that hold `examples.npz`).

    Raises ValueError if they were not measured on the same examples.
    """
    with np.load(pathlib.Path(first) / EXAMPLES) as a, np.load(pathlib.Path(second) / EXAMPLES) as b:
        if not np.array_equal(a["index"], b["index"]):
            raise ValueError(f"{first} and {second} were measured on different examples, so they cannot be paired")
        return difference(a[key], b[key], **options)


def _resampled_means(values: Float[np.ndarray, " n"], seed: int, resamples: int) -> Float[np.ndarray, " r"]:
    """Means of `resamples` draws of n examples with replacement; equal values are drawn together.

    A draw of n examples is a multinomial count of each distinct value: exact, and fast for 0/1 correctness.
    """
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= 64:
        return rng.multinomial(len(values), counts / len(values), size=resamples) @ distinct / len(values)
    return np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)])

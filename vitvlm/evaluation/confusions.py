"""Which classes are taken for which: the counts, the pairs that are confused most, and the classes that fare worst."""

import dataclasses

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class Pair:
    """`count` examples of class `label` were taken for `prediction`: `share` of that class."""

    label: int
    prediction: int
    count: int
    share: float


@dataclasses.dataclass(frozen=True)
class Worst:
    """A class of n examples of which `accuracy` were right; `wrong` are places of some that were not."""

    label: int
    n: int
    accuracy: float
    wrong: tuple[int, ...]


def counts(labels: Int[np.ndarray, " n"], prediction: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, "S S"]:
    """How many examples of each class (row) were taken for each class (column)."""
    return np.bincount(labels * classes + prediction, minlength=classes**2).reshape(classes, classes)


def pairs(labels: Int[np.ndarray, " n"], prediction: Int[np.ndarray, " n"], most: int) -> list[Pair]:
    """The pairs of different classes that are confused most often, at most `most`; no table of S x S is made."""
    wrong = labels != prediction
    found, number = np.unique(np.stack([labels[wrong], prediction[wrong]], axis=1), axis=0, return_counts=True)
    total = np.bincount(labels)
    each = [Pair(int(a), int(b), int(k), int(k) / int(total[a])) for (a, b), k in zip(found, number)]
    return sorted(each, key=lambda pair: (-pair.count, -pair.share, pair.label, pair.prediction))[:most]


def worst(labels: Int[np.ndarray, " n"], prediction: Int[np.ndarray, " n"], most: int, examples: int) -> list[Worst]:
    """The classes with the lowest accuracy, the larger first among equals; those without a mistake are left out.

    `examples` mistakes of each are named, spread evenly over them in the order of the set.
    """
    total, right = np.bincount(labels), np.bincount(labels, weights=labels == prediction)
    order = sorted(np.flatnonzero(total).tolist(), key=lambda label: (right[label] / total[label], -total[label]))
    rows = []
    for label in order[:most]:
        wrong = np.flatnonzero((labels == label) & (prediction != label))
        if len(wrong):
            some = wrong[np.linspace(0, len(wrong) - 1, min(examples, len(wrong))).round().astype(int)]
            rows.append(Worst(label, int(total[label]), float(right[label] / total[label]), tuple(some.tolist())))
    return rows

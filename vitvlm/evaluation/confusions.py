"""Confusions between classes: their counts, the pairs confused most often, and the classes with the lowest accuracy."""

import dataclasses

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two classes: `count` examples of `label`, a `share` of it, were taken for `prediction`; `wrong` holds some."""

    label: int
    prediction: int
    count: int
    share: float
    wrong: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Worst:
    """A class with its number of examples `n`, its accuracy, and the places of some that were wrong."""

    label: int
    n: int
    accuracy: float
    wrong: tuple[int, ...]


def counts(labels: Int[np.ndarray, " n"], prediction: Int[np.ndarray, " n"], classes: int) -> Int[np.ndarray, "S S"]:
    """Counts the examples of each class (row) that were predicted to be of each class (column)."""
    return np.bincount(labels * classes + prediction, minlength=classes**2).reshape(classes, classes)


def pairs(labels: Int[np.ndarray, " n"], prediction: Int[np.ndarray, " n"], most: int, examples: int) -> list[Pair]:
    """The pairs of different classes that are confused most often, at most `most`; no table of S x S is made.

    `examples` of each are named, spread evenly over them in the order of the set.
    """
    wrong = np.flatnonzero(labels != prediction)
    found, pair, number = np.unique(
        np.stack([labels[wrong], prediction[wrong]], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    share = number / np.bincount(labels)[found[:, 0]]
    order = np.lexsort((found[:, 1], found[:, 0], -share, -number))[:most]
    return [
        Pair(*found[i].tolist(), int(number[i]), float(share[i]), _spread(wrong[pair == i], examples)) for i in order
    ]


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
            rows.append(Worst(label, int(total[label]), float(right[label] / total[label]), _spread(wrong, examples)))
    return rows


def _spread(places: Int[np.ndarray, " n"], most: int) -> tuple[int, ...]:
    """Picks at most `most` of the places, evenly spaced."""
    return tuple(places[np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)].tolist())

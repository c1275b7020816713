"""BLEU (Papineni et al. 2002): of a text's n-grams, how many the references have, and whether it is long enough."""

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Words = Sequence[str]
_NONE, _SOME = 1e-15, 1e-9  # in place of no right n-gram, and of no n-gram at all: coco-caption's


class Bleu(NamedTuple):
    """BLEU-1 to BLEU-N of a whole set, and of each of its texts: corpus [N] and each [n, N]."""

    corpus: Float[np.ndarray, " N"]
    each: Float[np.ndarray, "n N"]


def counts(words: Words, most: int) -> collections.Counter[tuple[str, ...]]:
    """Counts each n-gram of a text up to `most` words."""
    return collections.Counter(tuple(words[i : i + n]) for n in range(1, most + 1) for i in range(len(words) - n + 1))


def bleu(candidates: Sequence[Words], references: Sequence[Sequence[Words]], most: int = 4) -> Bleu:
    """BLEU_N = min(1, exp(1 - r / c)) (p_1 … p_N)^(1/N) for N = 1 … `most`.

    p_n is the share of the candidates' n-grams that are right, each counted at most as often as one of its references
    has it; c and r are the lengths of all candidates and of the references closest to them (the shorter of two).

    Args:
      candidates: [n] texts in words; references: of each, one or more.

    Raises ValueError for another number of references than candidates, or a candidate without references.
    """
    check(candidates, references)
    right, total = np.zeros((2, len(candidates), most))
    lengths = np.zeros((len(candidates), 2))
    for row, (candidate, known) in enumerate(zip(candidates, references)):
        limit: collections.Counter[tuple[str, ...]] = collections.Counter()
        for each in known:
            limit |= counts(each, most)
        for gram, count in (counts(candidate, most) & limit).items():
            right[row, len(gram) - 1] += count
        total[row] = [max(0, len(candidate) - n) for n in range(most)]
        lengths[row] = len(candidate), min((abs(len(each) - len(candidate)), len(each)) for each in known)[1]
    return Bleu(_scores(right.sum(axis=0), total.sum(axis=0), *lengths.sum(axis=0)), _each(right, total, lengths))


def check(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    """Raises ValueError if not every candidate has its references."""
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} texts and references of {len(references)}: give some for each text")
    if empty := [row for row, known in enumerate(references) if not len(known)]:
        raise ValueError(f"text {empty[0]} has no reference to be compared with")


def _each(right: np.ndarray, total: np.ndarray, lengths: np.ndarray) -> Float[np.ndarray, "n N"]:
    return np.array([_scores(*row) for row in zip(right, total, *lengths.T)]).reshape(right.shape)


def _scores(right: np.ndarray, total: np.ndarray, written: float, wanted: float) -> Float[np.ndarray, " N"]:
    precision = np.cumprod((right + _NONE) / (total + _SOME))
    ratio = (written + _NONE) / (wanted + _SOME)
    return precision ** (1 / np.arange(1, len(right) + 1)) * (math.exp(max(1 - 1 / ratio, -700)) if ratio < 1 else 1)

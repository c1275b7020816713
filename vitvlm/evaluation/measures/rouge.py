"""ROUGE-L (Lin 2004): the longest common subsequence of a text and its references."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vitvlm.evaluation.measures.bleu import Words, check

BETA = 1.2


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Float[np.ndarray, " n"]:
    """ROUGE-L of each text, (1 + b^2) P R / (R + b^2 P) with b = 1.2; that of a set is the mean.

    P and R are the longest common subsequence over the text's and over the reference's length, the best of all
    references each, as coco-caption takes them.

    Raises ValueError as `bleu.bleu` does.
    """
    check(candidates, references)
    scores = np.zeros(len(candidates))
    for row, (candidate, known) in enumerate(zip(candidates, references)):
        common = [common_length(candidate, each) for each in known]
        precision = max(common) / max(len(candidate), 1)
        recall = max(length / max(len(each), 1) for length, each in zip(common, known))
        if precision and recall:
            scores[row] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


def common_length(one: Words, other: Words) -> int:
    """The length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for i, theirs in enumerate(other):
            above = lengths[i + 1]
            lengths[i + 1] = before + 1 if word == theirs else max(above, lengths[i])
            before = above
    return lengths[-1]

"""CIDEr-D (Vedantam et al. 2015): how much a caption says what its references say and those of other images do not."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from vitvlm.evaluation.measures.bleu import Words, check, counts

Gram = tuple[str, ...]
SIGMA = 6.0
MOST = 4


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Float[np.ndarray, " n"]:
    """CIDEr-D of each caption, 0 to 10; that of a set is the mean, often reported times 100.

    10 times the mean over n = 1 … 4 and the references of

        exp(-(l(c) - l(r))^2 / 2 sigma^2)  sum_g min(g_c, g_r) g_r / (|g_c| |g_r|)

    where g are tf-idf weights of n-grams and sigma = 6. How many images' references have an n-gram is counted in the
    evaluated set itself: captions of a single image all score 0, and scores of different sets cannot be compared.

    Raises ValueError as `bleu.bleu` does.
    """
    check(candidates, references)
    known = [[counts(each, MOST) for each in of_image] for of_image in references]
    images = collections.Counter(gram for of_image in known for gram in set().union(*of_image))
    rarity = _Rarity(images, np.log(len(references)) if len(references) else 0.0)
    scores = np.zeros(len(candidates))
    for row, (candidate, of_image) in enumerate(zip(candidates, known)):
        own = rarity.vector(counts(candidate, MOST))
        scores[row] = 10 * np.mean([_similarity(own, rarity.vector(each)) for each in of_image])
    return scores


class _Vector(NamedTuple):
    """Weights of n-grams, the length of those of each n, and the text's number of word pairs, its length."""

    weights: Mapping[Gram, float]
    norms: Float[np.ndarray, " 4"]
    length: int


class _Rarity(NamedTuple):
    """Numbers of the images whose references have each n-gram, and the logarithm of that of all images."""

    images: Mapping[Gram, int]
    log_count: float

    def vector(self, grams: Mapping[Gram, int]) -> _Vector:
        weights = {gram: n * (self.log_count - np.log(max(1, self.images[gram]))) for gram, n in grams.items()}
        squares = np.zeros(MOST)
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight**2
        return _Vector(weights, np.sqrt(squares), sum(n for gram, n in grams.items() if len(gram) == 2))


def _similarity(own: _Vector, other: _Vector) -> float:
    """The mean over n of the clipped cosine, lower the more the lengths differ."""
    products = np.zeros(MOST)
    for gram, weight in own.weights.items():
        theirs = other.weights.get(gram, 0.0)
        products[len(gram) - 1] += min(weight, theirs) * theirs
    norms = own.norms * other.norms
    cosines = np.divide(products, norms, out=np.zeros(MOST), where=norms > 0)
    return float(cosines.mean() * np.exp(-((own.length - other.length) ** 2) / (2 * SIGMA**2)))

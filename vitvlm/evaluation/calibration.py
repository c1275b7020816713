"""Temperature scaling: one number that makes probabilities mean what they say (Guo et al. 2017)."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

BINS = 15
LIMIT = 1e3  # temperatures are sought between 1 / LIMIT and LIMIT
_HALVINGS = 80


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A temperature, and what it does on the examples that it was fitted on.

    Attributes:
      temperature: T of softmax(logits / T).
      n: number of examples.
      loss, loss_before: mean negative log-likelihood in nats, with it and without.
      error, error_before: expected calibration error in BINS bins of equal width, as a share.
    """

    temperature: float
    n: int
    loss: float
    loss_before: float
    error: float
    error_before: float

    def __str__(self) -> str:
        """One line with the numbers before and after."""
        return (
            f"temperature {self.temperature:.3g}, fitted on {self.n:,} images: negative log-likelihood "
            f"{self.loss_before:.3f} before, {self.loss:.3f} after; expected calibration error ({BINS} bins) "
            f"{100 * self.error_before:.1f} % before, {100 * self.error:.1f} % after"
        )


def fit(logits: Float[np.ndarray, "n S"], labels: Int[np.ndarray, " n"]) -> Calibration:
    """Finds the temperature of the highest likelihood, which is convex in 1 / T (Guo et al. 2017, section 4.2).

    Where no temperature is the best, all answers being right (or wrong), it is the lowest (or highest) of those sought.
    """
    logits = logits.astype(np.float64)
    low, high = np.log(1 / LIMIT), np.log(LIMIT)  # of 1 / T
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _slope(logits, labels, np.exp(middle)) > 0:
            high = middle
        else:
            low = middle
    temperature = float(np.exp(-(low + high) / 2))
    return Calibration(
        temperature,
        len(labels),
        loss(logits / temperature, labels),
        loss(logits, labels),
        error(softmax(logits / temperature), labels),
        error(softmax(logits), labels),
    )


def softmax(logits: Float[np.ndarray, "n S"]) -> Float[np.ndarray, "n S"]:
    """Probabilities, in float64."""
    scaled = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def loss(logits: Float[np.ndarray, "n S"], labels: Int[np.ndarray, " n"]) -> float:
    """The mean of -log softmax(logits)[label], in nats."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=1)) - own).mean())


def error(probabilities: Float[np.ndarray, "n S"], labels: Int[np.ndarray, " n"], bins: int = BINS) -> float:
    """Expected calibration error: the mean over examples of |accuracy - confidence| of their bin (equation 3)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    total, gap = np.bincount(place, minlength=bins), np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap)[total > 0].sum() / len(labels))


def _slope(logits: Float[np.ndarray, "n S"], labels: Int[np.ndarray, " n"], inverse: float) -> float:
    """The derivative of the mean loss by 1 / T: the mean of the expected logit less the label's."""
    expected = (softmax(inverse * logits) * logits).sum(axis=1)
    return float((expected - np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]).mean())

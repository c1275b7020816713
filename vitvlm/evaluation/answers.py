"""A classifier's answers to each example, by name: the arrays in the examples.npz of labelled data."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

MOST = 5  # answers per example
FEW = 20  # classes, up to which the probabilities of all are kept


def told(
    index: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    label_names: Sequence[str],
    example_id: Callable[[int], str],
) -> dict[str, np.ndarray]:
    """Returns the arrays that describe each example: id [n], label [n] and label_name [n]."""
    ids = np.array([example_id(int(place)) for place in index])
    return {"id": ids, "label": labels, "label_name": np.array(label_names)[labels]}


def answered(
    logits: Float[np.ndarray, "n C"],
    labels: Int[np.ndarray, " n"],
    label_names: Sequence[str],
) -> dict[str, np.ndarray]:
    """Returns the arrays with the answers to each example, most probable class first.

    Args:
      logits: logarithms of probabilities up to a constant per example; equal ones come in the order of their class.
      labels: columns of `logits`; one that is none of them has probability 0.
      label_names: names of the columns, and perhaps of labels beyond them.

    Returns correct [n]; prediction and prediction_name [n]; top, top_name and top_probability [n, k] of the k most
    probable classes, k = min(5, C); label_probability [n]; and, for at most 20 classes, probabilities [n, C] and
    class_names [C].
    """
    names, count = np.array(label_names), logits.shape[1]
    top = np.argsort(-logits, axis=1, kind="stable")[:, :MOST]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    own = np.where(labels[:, None] == np.arange(count), probabilities, 0).sum(axis=1)
    found = {
        "correct": top[:, 0] == labels,
        "prediction": top[:, 0],
        "prediction_name": names[top[:, 0]],
        "top": top,
        "top_name": names[top],
        "top_probability": np.take_along_axis(probabilities, top, axis=1),
        "label_probability": own,
    }
    if count <= FEW:
        found |= {"probabilities": probabilities, "class_names": names[:count]}
    return found

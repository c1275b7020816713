"""Classification: top-1 and top-5 accuracy and cross-entropy over every example once."""

import csv
import dataclasses
import pathlib
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from vitvlm.evaluation import base, bootstrap, page


@dataclasses.dataclass(frozen=True)
class Classification:
    """Scores the logits of a prediction function.

    Metrics: top1 with its bootstrap interval (top1_low, top1_high), top5 where there are more than 5 classes, the mean
    per-class accuracy, the mean cross-entropy (nats) and n. Writes `examples.npz` (index, label, prediction, correct)
    and `classes.csv`. Where pictures are given, `page.html` shows what is taken for what and the worst classes, with at
    most `shown` pictures (0: no page).
    """

    labelled: ClassVar[bool] = True

    batches: base.Batches
    label_names: tuple[str, ...] = ()
    output: str = "logits"
    shown: int = 200
    picture: page.Picture | None = None
    example_id: Callable[[int], str] = str

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        whole = base.labelled(base.per_example(predict, self.output, variables, self.batches))
        logits, labels = whole["logits"].astype(np.float64), whole["label"]
        check_labels(labels, logits.shape[1])
        metrics = scores(logits, labels) | {"loss": float(cross_entropy(logits, labels).mean())}
        prediction = logits.argmax(axis=1)
        bootstrap.save_examples(
            folder, whole["index"], label=labels, prediction=prediction, correct=prediction == labels
        )
        write_classes(pathlib.Path(folder) / "classes.csv", labels, prediction, logits.shape[1], self.label_names)
        n, classes = logits.shape
        result = base.Result(metrics, f"classification, {classes} classes, n={n}, {interval_protocol()}")
        known = dict(enumerate(self.label_names))
        names = tuple(known.get(label, str(label)) for label in range(classes))
        classified = page.Classified(labels, prediction, names)
        ours = page.Page(f"Classification: {n:,} images, {classes:,} classes", whole["index"], classified=classified)
        return page.write(folder, ours, result, self.shown, self.picture, self.example_id)


def scores(logits: Float[np.ndarray, "n S"], labels: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Accuracies of class scores: top1 with its interval, top5 where it means something, mean over classes, and n."""
    ranks = label_ranks(logits, labels)
    correct = ranks == 0
    per_class = [correct[labels == label].mean() for label in np.unique(labels)]
    metrics = with_interval("top1", correct) | {"mean_class_accuracy": float(np.mean(per_class))}
    if logits.shape[1] > 5:
        metrics["top5"] = float((ranks < 5).mean())
    return metrics | {"n": float(len(labels))}


def with_interval(name: str, correct: np.ndarray) -> dict[str, float]:
    """A share of right answers and its bootstrap bounds: name, name_low, name_high."""
    estimate, low, high = bootstrap.mean(correct)
    return {name: estimate, f"{name}_low": low, f"{name}_high": high}


def interval_protocol() -> str:
    return f"{bootstrap.CONFIDENCE:.0%} percentile bootstrap over examples, {bootstrap.RESAMPLES} resamples"


def label_ranks(logits: Float[np.ndarray, "n S"], labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """How many classes come before the label's; equal logits come in the order of their class, as in argmax."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(axis=1)


def cross_entropy(logits: Float[np.ndarray, "n S"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """-log softmax(logits)[label], in nats."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]


def check_labels(labels: Int[np.ndarray, " n"], classes: int) -> None:
    """Raises ValueError for a label that the model has no class for."""
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but the model has {classes} classes; "
            "set model.num_classes"
        )


def write_classes(
    path: pathlib.Path,
    labels: Int[np.ndarray, " n"],
    prediction: Int[np.ndarray, " n"],
    classes: int,
    names: tuple[str, ...],
) -> None:
    """A CSV row per class: its examples, the share that was right, and what it was most often taken for."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["class", "name", "n", "accuracy", "most_common_error"])
        for label in range(classes):
            guesses = np.bincount(prediction[labels == label], minlength=classes)
            total, right = int(guesses.sum()), int(guesses[label])
            guesses[label] = 0
            name = dict(enumerate(names))
            wrong = int(guesses.argmax())
            error = name.get(wrong, str(wrong)) if guesses[wrong] else ""
            table.writerow([label, name.get(label, ""), total, f"{right / total:.4f}" if total else "", error])

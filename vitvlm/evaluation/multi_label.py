"""Multi-label classification: mean average precision and F1 over every example once."""

import csv
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from vitvlm.evaluation import base, bootstrap

RESAMPLES = 500  # each sorts nothing, but runs over all examples of all classes
_AT_ONCE = 2**22  # counts of examples in resamples held at a time


@dataclasses.dataclass(frozen=True)
class MultiLabel(base.Evaluator):
    """Scores the logits of a prediction function where an example has any number of classes, or none.

    Metrics: mAP, the mean of the classes' average precision (scikit-learn's average_precision_score; only classes that
    some example has count) with its bootstrap interval (mAP_low, mAP_high); micro_f1 and macro_f1 of the answers
    "probability above `threshold`", the latter over the same classes; the mean sum of binary cross-entropies (nats);
    n, and the number of classes that count. Writes `examples.npz` (index, id, labels, probability, label_names) and
    `classes.csv`.

    Fields:
      threshold: the probability above which a class is answered.
    """

    labelled: ClassVar[bool] = True
    multi_label: ClassVar[bool] = True

    batches: base.Batches
    label_names: tuple[str, ...]
    data_classes: tuple[int, ...] | None = None
    matched: str = ""
    output: str = "logits"
    threshold: float = 0.5
    example_id: Callable[[int], str] = str

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("mAP", "micro_f1", "macro_f1", "loss", "n", "classes")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"output": self.output}

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        whole = base.per_example(predict, self.output, variables, self.batches)
        if "labels" not in whole:
            raise ValueError("this evaluator needs lists of labels, and the batches have none")
        logits, labels = whole["logits"].astype(np.float64), whole["labels"] > 0.5
        if logits.shape != labels.shape:
            raise ValueError(
                f"labels of {labels.shape[1]} classes, but the model has {logits.shape[1]}; set model.num_classes"
            )
        counted = np.flatnonzero(labels.any(axis=0))
        if not len(counted):
            raise ValueError("no evaluated example has a label, so there is no average precision")
        probability = 1 / (1 + np.exp(-logits))
        answers = probability > self.threshold
        precisions, (low, high) = average_precisions(logits[:, counted], labels[:, counted])
        metrics = {"mAP": float(precisions.mean()), "mAP_low": low, "mAP_high": high}
        per_class = f1(*outcomes(answers, labels))
        metrics["micro_f1"] = float(f1(*(count.sum() for count in outcomes(answers, labels))))
        metrics["macro_f1"] = float(per_class[counted].mean())
        metrics["loss"] = float(np.logaddexp(0, np.where(labels, -logits, logits)).sum(axis=1).mean())
        n, classes = logits.shape
        metrics |= {"n": float(n), "classes": float(len(counted))}
        bootstrap.save_examples(
            folder,
            whole["index"],
            id=np.array([self.example_id(int(place)) for place in whole["index"]]),
            labels=labels,
            probability=probability.astype(np.float32),
            label_names=np.array(self.label_names),
        )
        every = np.full(classes, np.nan)
        every[counted] = precisions
        self._write_classes(pathlib.Path(folder) / "classes.csv", labels, answers, every)
        protocol = (
            f"multi-label classification, mean of {len(counted)} classes' average precision"
            f"{f' ({classes - len(counted)} more are in no example)' * (len(counted) < classes)}, F1 of probabilities "
            f"above {self.threshold:g}, n={n}, {bootstrap.CONFIDENCE:.0%} percentile bootstrap over examples, "
            f"{RESAMPLES} resamples{base.notes(self.matched)}"
        )
        return base.Result(metrics, protocol)

    def _write_classes(
        self,
        path: pathlib.Path,
        labels: Bool[np.ndarray, "n S"],
        answers: Bool[np.ndarray, "n S"],
        precisions: Float[np.ndarray, " S"],
    ) -> None:
        """A row per class: the examples that have it, its average precision, and how its answers fare."""
        right, wrong, missed = outcomes(answers, labels)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["class", "name", "n", "average_precision", "precision", "recall", "f1"])
            for label in range(labels.shape[1]):
                hits, others, gaps = int(right[label]), int(wrong[label]), int(missed[label])
                figures = (
                    _share(hits, hits + others),
                    _share(hits, hits + gaps),
                    f"{f1(hits, others, gaps):.4f}" if hits + gaps else "",
                )
                precision = "" if np.isnan(precisions[label]) else f"{precisions[label]:.4f}"
                table.writerow([label, self.label_names[label], hits + gaps, precision, *figures])


def average_precisions(
    scores: Float[np.ndarray, "n S"], labels: Bool[np.ndarray, "n S"], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Float[np.ndarray, " S"], tuple[float, float]]:
    """The average precision of each class, and the percentile interval of their mean, the examples resampled.

    The sum over thresholds of (R_k - R_{k-1}) P_k, equal scores being one threshold. A class that a resample has no
    example of is left out of that resample's mean. Every class must have an example.
    """
    n, classes = labels.shape
    rng = np.random.default_rng(seed)
    rankings = [_Ranking(scores[:, c], labels[:, c]) for c in range(classes)]
    means = []
    chunk = max(1, min(resamples, _AT_ONCE // n))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=size).T.astype(np.int32)
        total, present = np.zeros(size), np.zeros(size)
        for ranking in rankings:
            precision = ranking.average_precision(counts)
            total += np.nan_to_num(precision)
            present += ~np.isnan(precision)
        means.append(total[present > 0] / present[present > 0])
    tail = (1 - bootstrap.CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    ones = np.ones((n, 1), np.int32)
    own = np.array([ranking.average_precision(ones)[0] for ranking in rankings])
    return own, (float(low), float(high))


class _Ranking:
    """The examples of one class from the highest score down."""

    def __init__(self, scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]):
        self._order = np.argsort(-scores, kind="stable")
        ranked, own = scores[self._order], labels[self._order]
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last of each run of equal scores
        # Recall grows only at thresholds that take in an example of the class.
        held = np.add.reduceat(own, np.append(0, last[:-1] + 1)) > 0
        self._last, self._own = last[held], own

    def average_precision(self, counts: Int[np.ndarray, "n r"]) -> Float[np.ndarray, " r"]:
        """Average precision per resample, with example i counted counts[i] times; NaN if none is of the class."""
        ranked = counts[self._order]
        above = np.cumsum(ranked, axis=0)[self._last]
        hits = np.cumsum(np.where(self._own[:, None], ranked, 0), axis=0)[self._last]
        steps = np.diff(hits, axis=0, prepend=0)
        total = hits[-1]
        area = (steps * (hits / np.maximum(above, 1))).sum(axis=0)
        return np.where(total > 0, area / np.maximum(total, 1), np.nan)


def outcomes(
    answers: Bool[np.ndarray, "n S"], labels: Bool[np.ndarray, "n S"]
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
    """Counts the true positives, false positives and false negatives of each class."""
    return (answers & labels).sum(axis=0), (answers & ~labels).sum(axis=0), (~answers & labels).sum(axis=0)


def f1(right: np.ndarray, wrong: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN); 0 where there is nothing to find and nothing was found."""
    return 2 * right / np.maximum(2 * right + wrong + missed, 1)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else ""

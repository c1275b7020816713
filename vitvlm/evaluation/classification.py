"""Classification: top-1 and top-5 accuracy and cross-entropy over every example once."""

import csv
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from vitvlm.core.config import ConfigError
from vitvlm.evaluation import answers, base, bootstrap, page


@dataclasses.dataclass(frozen=True)
class Classification(base.Evaluator):
    """Scores the logits of a prediction function.

    Metrics: top1 with its bootstrap interval (top1_low, top1_high), top5 where there are more than 5 classes, the mean
    per-class accuracy, the mean cross-entropy (nats) and n. Writes `examples.npz` (see `save`) and `classes.csv`. Where
    pictures are given, `page.html` shows what is taken for what and the worst classes, with at most `max_images`
    pictures (0: no page).

    Fields:
      within: which classes there are to choose from: "head", all that the logits stand for, or "data", those that the
        evaluated data names (`data_classes`; all of them by default).
    """

    labelled: ClassVar[bool] = True

    batches: base.Batches
    label_names: tuple[str, ...]
    data_classes: tuple[int, ...] | None = None
    matched: str = ""
    within: Literal["head", "data"] = "head"
    output: str = "logits"
    max_images: int = 200
    picture: page.Picture | None = None
    example_id: Callable[[int], str] = str

    def __post_init__(self) -> None:
        if self.within not in ("head", "data"):
            raise ConfigError(f'within: {self.within!r} is neither "head" nor "data"')

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*score_names(len(self._choice(len(self.label_names))[0])), "loss")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"output": self.output}

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        whole = base.labelled(base.per_example(predict, self.output, variables, self.batches))
        every, labels = whole["logits"].astype(np.float64), whole["label"]
        check_labels(labels, every.shape[1])
        chosen, said = self._choice(every.shape[1])
        logits, own = every[:, chosen], np.searchsorted(chosen, labels)
        metrics = scores(logits, own) | {"loss": float(cross_entropy(logits, own).mean())}
        prediction = chosen[logits.argmax(axis=1)]
        names = tuple(self.label_names[place] for place in chosen)
        save(folder, whole["index"], own, logits, names, self.example_id)
        write_classes(pathlib.Path(folder) / "classes.csv", labels, prediction, self.label_names, chosen)
        n = len(labels)
        notes = base.notes(said, self.matched)
        protocol = f"classification, {len(chosen)} classes, n={n}, {interval_protocol()}{notes}"
        classified = page.Classified(own, logits.argmax(axis=1), names)
        title = f"Classification: {n:,} images, {len(chosen):,} classes"
        ours = page.Page(title, whole["index"], classified=classified)
        return page.write(folder, ours, base.Result(metrics, protocol), self.max_images, self.picture, self.example_id)

    def _choice(self, classes: int) -> tuple[Int[np.ndarray, " c"], str]:
        """Returns the classes to choose from, in order, and the protocol's words about them."""
        named = np.arange(classes) if self.data_classes is None else np.array(self.data_classes)
        if len(named) == classes:
            return named, ""
        if self.within == "data":
            return named, f"scored within the {len(named)} of the head's {classes} classes that the data names"
        return np.arange(classes), f"the data names {len(named)} of them"


def save(
    folder: pathlib.Path,
    index: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    logits: Float[np.ndarray, "n C"],
    label_names: tuple[str, ...],
    example_id: Callable[[int], str],
) -> None:
    """Writes examples.npz: each example's index, and the arrays of `answers.told` and `answers.answered`.

    Labels are columns of `logits`, whose names come first in `label_names`.
    """
    known = answers.told(index, labels, label_names, example_id)
    bootstrap.save_examples(folder, index, **known, **answers.answered(logits, labels, label_names))


def scores(logits: Float[np.ndarray, "n S"], labels: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Accuracies of class scores: top1 with its interval, top5 where it means something, mean over classes, and n."""
    ranks = label_ranks(logits, labels)
    correct = ranks == 0
    per_class = [correct[labels == label].mean() for label in np.unique(labels)]
    metrics = with_interval("top1", correct) | {"mean_class_accuracy": float(np.mean(per_class))}
    if logits.shape[1] > 5:
        metrics["top5"] = float((ranks < 5).mean())
    return metrics | {"n": float(len(labels))}


def score_names(classes: int) -> tuple[str, ...]:
    """Names of what `scores` gives, without the bounds of intervals."""
    return ("top1", "mean_class_accuracy", *(("top5",) if classes > 5 else ()), "n")


def with_interval(name: str, correct: np.ndarray) -> dict[str, float]:
    """A share of right answers and its bootstrap bounds: name, name_low, name_high."""
    estimate, low, high = bootstrap.mean(correct)
    return {name: estimate, f"{name}_low": low, f"{name}_high": high}


def interval_protocol() -> str:
    return f"{bootstrap.CONFIDENCE:.0%} percentile bootstrap over examples, {bootstrap.RESAMPLES} resamples"


def label_ranks(logits: Float[np.ndarray, "n S"], labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Returns the rank of each label's class, from 0; equal logits come in the order of their class, as in argmax."""
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
    names: tuple[str, ...],
    chosen: Sequence[int] | None = None,
) -> None:
    """Writes a CSV with a row per class: its examples, its accuracy, and the class it was most often taken for.

    `chosen` are the classes with a row: all by default.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["class", "name", "n", "accuracy", "most_common_error"])
        for label in range(len(names)) if chosen is None else chosen:
            guesses = np.bincount(prediction[labels == label], minlength=len(names))
            total, right = int(guesses.sum()), int(guesses[label])
            guesses[label] = 0
            wrong = int(guesses.argmax())
            error = names[wrong] if guesses[wrong] else ""
            table.writerow([label, names[label], total, f"{right / total:.4f}" if total else "", error])

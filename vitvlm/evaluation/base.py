"""Base of all evaluators: their result, their inputs, and one exact pass over a data set."""

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

Variables = Mapping[str, Any]
Batch = Mapping[str, np.ndarray]
Batches = Callable[[], Iterable[Batch]]
Arrays = dict[str, np.ndarray]


class Predict(Protocol):
    """Runs a task's prediction function by name on one batch and brings the arrays to the host.

    `how` are keyword arguments of the function that it is compiled for, such as how many tokens it may write.
    """

    def __call__(self, name: str, variables: Variables, batch: Batch, **how: Any) -> Arrays: ...


@dataclasses.dataclass(frozen=True)
class Result:
    """Scores, the protocol that they were measured under, and the pictures and the page that were written."""

    metrics: dict[str, float]
    protocol: str
    pictures: tuple[pathlib.Path, ...] = ()
    page: pathlib.Path | None = None


# Bounds of an interval, which are shown with the figure that they belong to.
_BOUNDS = ("_low", "_high")


def with_intervals(metrics: Mapping[str, float]) -> Iterator[tuple[str, float, tuple[float, float] | None]]:
    """Yields (name, value, bounds of its interval) of each metric; bounds are not metrics of their own."""
    for name, value in metrics.items():
        if name.endswith(_BOUNDS) and name.rpartition("_")[0] in metrics:
            continue
        low, high = (metrics.get(name + bound) for bound in _BOUNDS)
        yield name, value, None if low is None else (low, high)


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about an evaluator's data that are known before a model is run.

    Attributes:
      name, train_name: names of the evaluated split, and of the one that probes and neighbours learn from.
      labels, train_labels: functions that give every example's label, [n] and [m], unreadable images included.
      arrays: names of the arrays in batches besides image, label, example_mask and index.
      predictions: names of the task's prediction functions.
      text: the first example's text, or texts, of a field; None if it has none.
    """

    name: str
    train_name: str
    labels: Callable[[], np.ndarray]
    train_labels: Callable[[], np.ndarray]
    arrays: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()
    text: Callable[[str], str | tuple[str, ...] | None] = lambda name: None


class Evaluator(abc.ABC):
    """Turns a model's predictions into metrics; files (per-example results, pictures) go to `folder`.

    An evaluator is pure: with a name, data and a schedule it is an `Evaluation` (`jobs.evaluation`). Evaluators are
    frozen dataclasses, and override of the defaults here what differs for them.

    Attributes:
      labelled: whether its figures are about labels: it is then given a source of two classes or more.
      multi_label: whether it takes a list of labels per image instead of a single one.
      compared: the array of its examples.npz that tells how good each example's answer is, higher the better, by which
        it is judged with other images and with none (`grounding`); None: it is not.
      has_answers: whether examples.npz has answer, truth and question too, as texts; then there is a `max_images`.
      types: the field of the records with the type of each question; "" for none.

    Fields that several have:
      output: the task's prediction function whose arrays are scored.
      max_images: pictures that the page shows at most; 0 for no page.
      features: the task's prediction function whose arrays are the features, or "pixels".
      weights: "trained", or "random" for a baseline with weights as before any training.
      seed: of the random weights and of every random choice.
    """

    labelled: ClassVar[bool] = False
    multi_label: ClassVar[bool] = False
    compared: ClassVar[str | None] = None
    has_answers: ClassVar[bool] = False
    types: ClassVar[str] = ""

    @property
    @abc.abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that `run` may give, without the bounds of intervals; known before anything is run."""

    @abc.abstractmethod
    def run(self, predict: Predict, variables: Variables, folder: pathlib.Path) -> Result: ...

    @property
    def predictions(self) -> Mapping[str, str]:
        """The prediction functions that its fields choose, by the field's name; checked against those of the task."""
        return {}

    def check(self, facts: Facts) -> None:  # noqa: B027 - by default there is nothing to check
        """Compares its fields with its data before anything is trained.

        Raises ConfigError, whose message begins with the field, for errors that `run` could only raise afterwards.
        """

    def warning(self, metrics: Mapping[str, float], before: Mapping[int, Mapping[str, float]]) -> str:
        """Says in one line what is wrong with a training by its figures; "" for nothing, as by default.

        Args:
          metrics: those of `run` now. before: those of earlier steps of the same training, by step.
        """
        return ""


def collect(batches: Batches, outputs: Callable[[Batch], Mapping[str, np.ndarray]]) -> Arrays:
    """Per-example arrays of a whole data set, each example once, in the order of its index.

    Args:
      batches: one exact pass; padding (example_mask 0) is dropped.
      outputs: a batch's arrays by name, each `[B, ...]`. "index" and "label" or "labels" (where the batch has one) are
        added.

    Returns arrays `[n, ...]`, the same in every process and for every batch size.
    Raises ValueError for an empty data set, an example seen twice, or an output that is not finite.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches():
        real = np.asarray(batch["example_mask"]) > 0
        arrays = {name: batch[name] for name in ("index", "label", "labels") if name in batch} | dict(outputs(batch))
        for name, array in _gather(arrays | {"real": real}).items():
            parts.setdefault(name, []).append(array)
    if not parts:
        raise ValueError("the evaluated split gives no batches; check the evaluator's split")
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    real = joined.pop("real")
    order = np.flatnonzero(real)
    order = order[np.argsort(joined["index"][order], kind="stable")]
    whole = {name: array[order] for name, array in joined.items()}
    _check(whole)
    return whole


def notes(*sentences: str) -> str:
    """Returns the end of a protocol: every sentence that is not empty, each after a semicolon."""
    return "".join(f"; {sentence}" for sentence in sentences if sentence)


def unlearned(known: np.ndarray, labels: np.ndarray) -> str:
    """Notes for a protocol how many of the labels are of classes that no example to learn from has; "" for none."""
    count = int((~np.isin(labels, known)).sum())
    return f"{count} of these of classes without a training example" if count else ""


def labelled(whole: Arrays) -> Arrays:
    """The arrays, once it is sure that they hold labels."""
    if "label" not in whole:
        raise ValueError("this evaluator needs labels, and the batches have none; choose a labelled data set")
    return whole


def per_example(predict: Predict, name: str, variables: Variables, batches: Batches) -> Arrays:
    """Collects a prediction function's outputs by `collect`."""
    return collect(
        batches, lambda batch: {key: _float32(value) for key, value in predict(name, variables, batch).items()}
    )


def _float32(array: np.ndarray) -> np.ndarray:
    """bfloat16 and float16 as float32: NumPy cannot save the first and overflows in the second."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.itemsize < 4 and array.dtype.kind in "fV" else array


def summed(values: Mapping[str, np.ndarray | float]) -> dict[str, np.ndarray]:
    """Sums over all processes of what each has."""
    local = {name: np.asarray(value) for name, value in values.items()}
    if jax.process_count() == 1:
        return local
    return {name: each.sum(axis=0) for name, each in multihost_utils.process_allgather(local).items()}


def _gather(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Every process's rows of a batch; what one process has is already whole."""
    local = {name: np.asarray(array) for name, array in arrays.items()}
    return multihost_utils.process_allgather(local, tiled=True) if jax.process_count() > 1 else local


def _check(whole: Arrays) -> None:
    index = whole["index"]
    if not len(index):
        raise ValueError("the evaluated split holds no readable example; check the evaluator's split and the data")
    repeated = index[1:][index[1:] == index[:-1]]
    if len(repeated):
        raise ValueError(f"example {repeated[0]} was evaluated twice; an evaluation pass must give each example once")
    for name, array in whole.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = index[~np.isfinite(array.reshape(len(array), -1)).all(axis=1)]
            raise ValueError(
                f"{name} is not finite for {len(bad)} of {len(index)} examples, the first at index {bad[0]}"
            )

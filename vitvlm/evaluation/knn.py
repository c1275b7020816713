"""Weighted k-nearest-neighbour classification of frozen features (Wu et al., 2018; the protocol of DINO)."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from vitvlm.core.config import ConfigError
from vitvlm.evaluation import answers, base, bootstrap, classification
from vitvlm.evaluation.features import FeatureSource, RandomVariables

KS = (10, 20, 100, 200)
"""Numbers of neighbours that are scored unless others are asked for."""

_BLOCK_SIMILARITIES = 2**24  # 64 MB of float32


@dataclasses.dataclass(frozen=True)
class NearestNeighbours(base.Evaluator):
    """L2-normalised features; each of the k nearest training examples votes exp(similarity / temperature).

    Metrics: top1_k20, top1_k20_low, top1_k20_high … for each k, and n. No best k is named: choosing it here would fit
    the test set. Writes `examples.npz`: index, `answers.told`, k20 (whether it is correct) … and the rest of
    `answers.answered` for each k, as k20_prediction_name; the probabilities are shares of the votes.

    `ks` are KS by default, or as many of them as there are training examples for; the protocol names those left out.

    With `leave_one_out` the evaluated split is its own training set: each example is judged by all others. This is for
    sets that are too small to split.

    Fields:
      ks: numbers of neighbours that vote; by default as many of 10, 20, 100 and 200 as there are examples for.
      temperature: of the votes' weights, exp(similarity / temperature).
      leave_one_out: judge each example of the evaluated split by all others of it.
    """

    labelled: ClassVar[bool] = True

    batches: base.Batches
    train_batches: base.Batches
    label_names: tuple[str, ...]
    matched: str = ""
    random_variables: RandomVariables | None = None
    features: str = "features"
    weights: str = "trained"
    seed: int = 0
    ks: tuple[int, ...] | None = None
    temperature: float = 0.07
    leave_one_out: bool = False
    example_id: Callable[[int], str] = str

    def check(self, facts: base.Facts) -> None:
        bank, name = (facts.labels(), facts.name) if self.leave_one_out else (facts.train_labels(), facts.train_name)
        self._fitting_ks(len(bank) - self.leave_one_out, f" ({name})")

    def _fitting_ks(self, known: int, name: str = "") -> tuple[int, ...]:
        """Returns the numbers of neighbours to score among `known` training examples.

        Raises ConfigError for numbers that do not fit, and for a temperature whose votes overflow.
        """
        if not self.temperature > 1 / 700:  # exp(1 / temperature) must be finite
            raise ConfigError(f"temperature: {self.temperature:g}; votes are exp(similarity / it): give 0.0015 or more")
        if self.ks is not None and (not self.ks or min(self.ks) < 1):
            raise ConfigError(f"ks: {tuple(self.ks)}; give numbers of neighbours, 1 or more each")
        asked = KS if self.ks is None else tuple(self.ks)
        fitting = tuple(k for k in asked if k <= known)
        if not fitting or (self.ks is not None and fitting != asked):
            raise ConfigError(
                f"ks: {max(asked)} neighbours of {known} training examples{name}; choose smaller ks: "
                f"{fitting or (known,)}"
            )
        return fitting

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*(f"top1_k{k}" for k in self.ks or KS), "n")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"features": self.features}

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        source = FeatureSource(self.features, self.weights, self.seed, self.random_variables)
        variables = source.variables(variables)
        test = base.labelled(source.collect(predict, variables, self.batches))
        train = test if self.leave_one_out else base.labelled(source.collect(predict, variables, self.train_batches))
        known = len(train["label"]) - self.leave_one_out
        ks = self._fitting_ks(known)
        votes = vote(train["features"], train["label"], test["features"], ks, self.temperature, self.leave_one_out)
        saved, metrics = answers.told(test["index"], test["label"], self.label_names, self.example_id), {}
        for k in ks:
            with np.errstate(divide="ignore"):  # of no vote
                found = answers.answered(np.log(votes[k]), test["label"], self.label_names)
            saved |= {f"k{k}": found.pop("correct")} | {f"k{k}_{name}": array for name, array in found.items()}
            metrics |= classification.with_interval(f"top1_k{k}", saved[f"k{k}"])
        bootstrap.save_examples(folder, test["index"], **saved)
        unlearned = base.unlearned(train["label"], test["label"])
        left_out = [k for k in KS if k not in ks] if self.ks is None else []
        protocol = (
            f"kNN on {source.protocol}, cosine similarity, votes exp(sim/{self.temperature:g}), k in {ks}"
            f"{f' (not {left_out}: too few training examples)' * bool(left_out)}, "
            f"{'leave-one-out, ' * self.leave_one_out}{known} training examples, n={len(test['label'])}, "
            f"{classification.interval_protocol()}{base.notes(unlearned, self.matched)}"
        )
        return base.Result(metrics | {"n": float(len(test["label"]))}, protocol)


def vote(
    train: Float[np.ndarray, "m D"],
    labels: Int[np.ndarray, " m"],
    test: Float[np.ndarray, "n D"],
    ks: tuple[int, ...],
    temperature: float,
    leave_one_out: bool = False,
) -> dict[int, Float[np.ndarray, "n S"]]:
    """Class votes `[n, S]` for each k, over blocks of test examples so that memory does not grow with n.

    With `leave_one_out`, test and train are the same examples, and none is its own neighbour.
    """
    train, test = normalise(train), normalise(test)
    most, classes = max(ks), int(labels.max()) + 1
    votes = {k: np.zeros((len(test), classes)) for k in ks}
    block = max(1, _BLOCK_SIMILARITIES // len(train))
    for start in range(0, len(test), block):
        similarity = test[start : start + block] @ train.T
        if leave_one_out:
            own = np.arange(len(similarity))
            similarity[own, start + own] = -np.inf
        nearest = np.argpartition(similarity, -most, axis=1)[:, -most:] if most < len(train) else _all(similarity)
        near = np.take_along_axis(similarity, nearest, axis=1)
        order = np.argsort(-near, axis=1, kind="stable")
        near, near_labels = np.take_along_axis(near, order, axis=1), labels[np.take_along_axis(nearest, order, axis=1)]
        weight = np.exp(near.astype(np.float64) / temperature)
        rows = np.arange(start, start + len(similarity))[:, None]
        for k in ks:
            np.add.at(votes[k], (rows, near_labels[:, :k]), weight[:, :k])
    return votes


def normalise(features: Float[np.ndarray, "*n D"]) -> Float[np.ndarray, "*n D"]:
    """Rows of length 1; a row of zeros stays zero and is then equally far from everything."""
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.where(length == 0, 1, length)


def _all(similarity: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(similarity.shape[1]), similarity.shape)

"""Linear probes of frozen features, in two protocols with names of their own.

`linear_probe_mae`: batch normalisation and a linear layer trained with LARS (MAE, appendix A.1).
`linear_probe_logistic`: logistic regression, its C chosen on a held-out part of the training set (CLIP, appendix A.3).
Both compute the features once, without augmentation; both can read raw pixels or a random-weight encoder instead.
"""

import copy
import dataclasses
import math
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base, classification, lars_probe
from vitvlm.evaluation.features import FeatureSource, RandomVariables
from vitvlm.evaluation.knn import normalise

if TYPE_CHECKING:  # scikit-learn takes a second and more to import, and most jobs fit no such probe
    from sklearn.linear_model import LogisticRegression


@dataclasses.dataclass(frozen=True)
class MaeProbe(base.Evaluator):
    """BatchNorm without affine (eps 1e-6) + Linear, LARS, no weight decay, warm-up, half-cycle cosine; features cached.

    The learning rate is base_learning_rate * batch_size / 256. A batch is at most the whole training set. LARS moves
    the kernel by a share of its length that the rate sets, and the rate is made for a million images: on a small set
    raise base_learning_rate or epochs. A probe that could not move is named so in its protocol, and in a warning.

    Fields:
      epochs, warmup_epochs: of the probe's training, and of these the first in which its rate rises.
      batch_size: examples per step of the probe's training.
      base_learning_rate: the rate for a batch of 256.
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
    epochs: int = 90
    warmup_epochs: int = 10
    batch_size: int = 1024
    base_learning_rate: float = 0.1
    example_id: Callable[[int], str] = str

    def check(self, facts: base.Facts) -> None:
        _check_classes(facts.train_labels(), facts.train_name)

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*classification.score_names(len(self.label_names)), "loss", "train_top1")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"features": self.features}

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        source = FeatureSource(self.features, self.weights, self.seed, self.random_variables)
        train, test = _both(source, predict, variables, self.train_batches, self.batches)
        size = min(self.batch_size, len(train["label"]))
        fitted = lars_probe.fit(
            train["features"],
            train["label"],
            classes=_classes(train, test),
            epochs=self.epochs,
            warmup_epochs=self.warmup_epochs,
            batch_size=size,
            base_learning_rate=self.base_learning_rate,
            seed=self.seed,
        )
        logits = fitted.logits(test["features"])
        metrics = classification.scores(logits, test["label"])
        metrics["loss"] = float(classification.cross_entropy(logits, test["label"]).mean())
        metrics["train_top1"] = float((fitted.logits(train["features"]).argmax(axis=1) == train["label"]).mean())
        protocol = (
            f"linear probe (MAE) on {source.protocol}: BatchNorm without affine + Linear, LARS, base rate "
            f"{self.base_learning_rate:g} x {size}/256, no weight decay, {self.epochs} epochs, "
            f"{self.warmup_epochs} warm-up, batch {size}, cached features{self._undertrained(len(train['label']))}"
        )
        return _result(self, metrics, protocol, logits, train, test, folder)

    def _undertrained(self, examples: int) -> str:
        """A remark if the whole schedule moves the kernel by less than five lengths: it hardly leaves its start."""
        moved = lars_probe.relative_movement(examples, self.epochs, self.base_learning_rate)
        if moved >= 5:
            return ""
        logging.warning(
            "linear_probe_mae: %d epochs of %d examples at base_learning_rate %g hardly move the weights (%.2f of the "
            "5 times their length that is the least to expect); multiply base_learning_rate or epochs by %d",
            self.epochs, examples, self.base_learning_rate, moved, math.ceil(5 / moved),
        )  # fmt: skip
        return " (UNDER-TRAINED: too few steps at this rate)"


@dataclasses.dataclass(frozen=True)
class LogisticProbe(base.Evaluator):
    """L2-regularised logistic regression (L-BFGS) on features of length 1, standardised on the training set.

    C is the best of `sweep` on `validation_fraction` of the training examples (from the smallest up, until two in a row
    are worse); the fit with it is then made on all of them.

    Fields:
      sweep: values of C, the inverse strength of the L2 penalty, that are tried.
      validation_fraction: share of the training examples on which C is chosen.
      standardise: whether each feature is brought to mean 0 and standard deviation 1.
      tolerance: of the mean loss's gradient, at which the fit ends.
      max_iterations: of L-BFGS; a fit that has not ended by then is named so in the protocol.
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
    sweep: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    validation_fraction: float = 0.2
    standardise: bool = True
    tolerance: float = 3e-4  # of the mean loss's gradient; between 1e-3 and 1e-4 raw pixels gain 0.2 %
    max_iterations: int = 1000
    example_id: Callable[[int], str] = str

    def check(self, facts: base.Facts) -> None:
        labels = facts.train_labels()
        _check_classes(labels, facts.train_name)
        if not self.sweep:
            raise ConfigError("sweep: empty; give at least one C")
        if len(self.sweep) > 1:
            self._split(labels)

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*classification.score_names(len(self.label_names)), "train_top1", "C")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"features": self.features}

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        source = FeatureSource(self.features, self.weights, self.seed, self.random_variables)
        train, test = _both(source, predict, variables, self.train_batches, self.batches)
        inputs, test_inputs = self._scaled(train["features"], test["features"])
        model, converged = self._choose(inputs, train["label"])
        converged &= _fit(model, inputs, train["label"])
        chosen = float(model.C)
        logits = np.full((len(test["label"]), _classes(train, test)), -np.inf)
        logits[:, model.classes_] = model.predict_log_proba(test_inputs)
        metrics = classification.scores(logits, test["label"])
        metrics |= {"train_top1": float(model.score(inputs, train["label"])), "C": chosen}
        edge = (
            " (the edge of the sweep)" if len(self.sweep) > 1 and chosen in (min(self.sweep), max(self.sweep)) else ""
        )
        protocol = (
            f"linear probe (logistic regression) on {source.protocol}, L2-normalised"
            f"{' and standardised' if self.standardise else ''}: C={chosen:g}{edge} of {len(self.sweep)}, "
            f"chosen on {self.validation_fraction:.0%} of the training set, refitted on all of it, "
            f"L-BFGS to {self.tolerance:g}"
            f"{'' if converged else f', NOT converged in {self.max_iterations} iterations'}"
        )
        return _result(self, metrics, protocol, logits, train, test, folder)

    def _scaled(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        train, test = normalise(train), normalise(test)
        if not self.standardise:
            return train, test
        mean, std = train.mean(axis=0), train.std(axis=0)
        std = np.where(std > 1e-6, std, 1)
        return (train - mean) / std, (test - mean) / std

    def _choose(
        self, inputs: Float[np.ndarray, "m D"], labels: Int[np.ndarray, " m"]
    ) -> tuple["LogisticRegression", bool]:
        """The model with the best held-out accuracy (the smallest C of equals), and whether its fit converged.

        Each fit starts where the one before ended, and so will the fit on all examples.
        """
        if len(self.sweep) == 1:
            return self._model(self.sweep[0]), True
        held, kept = self._split(labels)
        model, fitted = self._model(1.0), []
        for value in sorted(self.sweep):
            model.set_params(C=value)
            converged = _fit(model, inputs[kept], labels[kept])
            fitted.append((model.score(inputs[held], labels[held]), copy.deepcopy(model), converged))
            best = max(range(len(fitted)), key=lambda place: fitted[place][0])
            if len(fitted) - best > 2:
                break
        _, model, converged = fitted[best]
        if len(model.classes_) < len(np.unique(labels)):
            return self._model(model.C), converged
        return model, converged

    def _split(self, labels: Int[np.ndarray, " m"]) -> tuple[Int[np.ndarray, " h"], Int[np.ndarray, " k"]]:
        """Places of the examples that C is chosen on, and of those that are fitted; ConfigError where these lack."""
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction: {self.validation_fraction:g} is not a share between 0 and 1")
        order = np.random.default_rng(self.seed).permutation(len(labels))
        held, kept = np.split(order, [round(self.validation_fraction * len(labels))])
        if not len(held) or len(np.unique(labels[kept])) < 2:
            raise ConfigError(
                f"validation_fraction: {self.validation_fraction:g} of {len(labels)} training examples leaves "
                f"{len(held)} to choose C on and {len(np.unique(labels[kept]))} classes to fit; use more data, "
                "another share, or one C in sweep"
            )
        return held, kept

    def _model(self, C: float) -> "LogisticRegression":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=C, tol=self.tolerance, max_iter=self.max_iterations, warm_start=True)


def _fit(model: "LogisticRegression", inputs: np.ndarray, labels: np.ndarray) -> bool:
    """Fits, and says whether the solver converged."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(inputs, labels)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _both(
    source: FeatureSource,
    predict: base.Predict,
    variables: base.Variables,
    train_batches: base.Batches,
    batches: base.Batches,
) -> tuple[base.Arrays, base.Arrays]:
    variables = source.variables(variables)
    train = base.labelled(source.collect(predict, variables, train_batches))
    test = base.labelled(source.collect(predict, variables, batches))
    _check_classes(train["label"], "the training split")
    return train, test


def _check_classes(labels: Int[np.ndarray, " m"], name: str) -> None:
    if (classes := len(np.unique(labels))) < 2:
        raise ConfigError(
            f"train_data: a probe needs at least two classes, and {name} has {classes} in {len(labels)} examples"
        )


def _classes(train: base.Arrays, test: base.Arrays) -> int:
    return int(max(train["label"].max(), test["label"].max())) + 1


def _result(
    probe: MaeProbe | LogisticProbe,
    metrics: dict[str, float],
    protocol: str,
    logits: np.ndarray,
    train: base.Arrays,
    test: base.Arrays,
    folder: pathlib.Path,
) -> base.Result:
    classification.save(folder, test["index"], test["label"], logits, probe.label_names, probe.example_id)
    sizes = f"{len(train['label'])} training examples, n={len(test['label'])}"
    notes = base.notes(base.unlearned(train["label"], test["label"]), probe.matched)
    return base.Result(metrics, f"{protocol}, {sizes}, {classification.interval_protocol()}{notes}")

"""Features of a frozen encoder over a data set: what probes and neighbours read, and an evaluator that saves them."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base

PIXELS = "pixels"
RandomVariables = Callable[[int], base.Variables]


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """Source of features: a prediction function's only output, its "features" output, or the pixels themselves.

    `weights="random"` uses the same encoder with weights initialised from `seed`: the baseline of every pre-training
    claim.
    """

    name: str = "features"
    weights: str = "trained"
    seed: int = 0
    random_variables: RandomVariables | None = None

    def __post_init__(self) -> None:
        if self.weights not in ("trained", "random"):
            raise ConfigError(f'weights: {self.weights!r} is neither "trained" nor "random"')
        if self.weights == "random" and self.random_variables is None:
            raise ConfigError('weights: "random" needs a job that can initialise the model')

    @property
    def protocol(self) -> str:
        if self.name == PIXELS:
            return "raw pixels"
        return (
            f"{self.name} of {f'random weights (seed {self.seed})' if self.weights == 'random' else 'trained weights'}"
        )

    def variables(self, trained: base.Variables) -> base.Variables:
        """The variables to evaluate; kept by the caller so that random weights are drawn once."""
        return self.random_variables(self.seed) if self.weights == "random" and self.name != PIXELS else trained

    def collect(self, predict: base.Predict, variables: base.Variables, batches: base.Batches) -> base.Arrays:
        """features `[n, D]` float32, index `[n]` and label `[n]` of every example."""
        return base.collect(batches, lambda batch: {"features": self._features(predict, variables, batch)})

    def _features(self, predict: base.Predict, variables: base.Variables, batch: base.Batch) -> np.ndarray:
        if self.name == PIXELS:
            features = np.asarray(batch["image"])
        else:
            outputs = predict(self.name, variables, batch)
            if "features" not in outputs and len(outputs) != 1:
                raise ConfigError(
                    f"prediction {self.name!r} gives {', '.join(sorted(outputs))}: no single feature to take"
                )
            features = np.asarray(outputs["features"] if "features" in outputs else next(iter(outputs.values())))
        return features.reshape(len(features), -1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Features(base.Evaluator):
    """Saves `features.npz`: features `[n, D]` float32, index `[n]`, and id `[n]`; of labelled data also label `[n]`, a
    place in class_names `[S]`, or, of several labels an image, labels `[n, S]`.
    """

    batches: base.Batches
    label_names: tuple[str, ...] = ()
    features: str = "features"
    example_id: Callable[[int], str] | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("n", "width", "mean_norm")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"features": self.features}

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        whole = FeatureSource(self.features).collect(predict, variables, self.batches)
        if self.example_id is not None:
            whole["id"] = np.array([self.example_id(int(index)) for index in whole["index"]])
        if self.label_names:
            whole["class_names"] = np.array(self.label_names)
        else:
            whole.pop("label", None)
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "features.npz", **whole)
        n, width = whole["features"].shape
        metrics = {
            "n": float(n),
            "width": float(width),
            "mean_norm": float(np.linalg.norm(whole["features"], axis=1).mean()),
        }
        return base.Result(metrics, f"{self.features} saved to features.npz, n={n}, width {width}")

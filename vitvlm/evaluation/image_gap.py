"""The gap of images: how much worse answers are foretold with another image, and with none, while a model trains."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base, bootstrap, classification, grounding, other_images
from vitvlm.evaluation.other_images import BLIND, SWAPPED

NAMES = {SWAPPED: "other", BLIND: "none"}
SAID = {SWAPPED: "another's image", BLIND: "no image"}
KEPT = 0.5  # of the best gap so far: one that falls below closes


@dataclasses.dataclass(frozen=True)
class ImageGap(base.Evaluator):
    """Compares the loss of a few records with the right image, with another's, and with none.

    It is what `grounding.Grounded` measures of a whole evaluation, cheap enough for every few steps: three passes over
    the records, no files but examples.npz. While a model learns to look the gaps open; a gap that closes again tells
    that it goes back to its text, and is a warning of the training.

    Metrics, in nats per learned token: loss_right; loss_other and loss_none, with another record's images and without
    any; gap_other and gap_none, how much higher these are on the same records, with bootstrap intervals over records;
    and n. Where no record can be given another's images, loss_other and gap_other are missing and the protocol says so.

    Fields:
      images: a record's fields of images by index, as the model gets them.
      type_of: a record's type of question: images are swapped within a type.
      output: the prediction function.
      seed: of which image is swapped with which.
    """

    batches: base.Batches
    images: other_images.Images
    type_of: Callable[[int], str] = lambda index: ""
    output: str = "log_likelihood"
    seed: int = 0

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("loss_right", "loss_other", "loss_none", "gap_other", "gap_none", "n")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"output": self.output}

    def check(self, facts: base.Facts) -> None:
        if "text_segments" in facts.arrays:
            raise ConfigError("batches: rows of several records: leave pack out of the evaluated split's operations")

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        known = other_images.survey(self.batches, self.type_of, self.seed)

        def losses(condition: str | None) -> base.Arrays:
            def outputs(batch: base.Batch) -> base.Arrays:
                found = predict(self.output, variables, batch)
                loss = -np.asarray(found["log_likelihood"], np.float64)
                return {"loss": loss, "tokens": np.asarray(found["learned_tokens"])}

            return base.collect(other_images.changed(self.batches, condition, known, self.images, self.seed), outputs)

        right = losses(None)
        saved = {"loss_right": right["loss"], "tokens": right["tokens"]}
        metrics = {"loss_right": right["loss"].sum() / right["tokens"].sum(), "n": float(len(right["index"]))}
        gaps: dict[str, bootstrap.Interval] = {}
        for condition, name in NAMES.items():
            if condition == SWAPPED and not known.partner:
                continue
            other = losses(condition)
            rows = np.searchsorted(right["index"], other["index"])
            gaps[condition] = gap = bootstrap.ratio(other["loss"] - right["loss"][rows], other["tokens"])
            metrics |= {
                f"loss_{name}": other["loss"].sum() / other["tokens"].sum(),
                f"gap_{name}": gap.estimate,
                f"gap_{name}_low": gap.low,
                f"gap_{name}_high": gap.high,
            }
            saved[f"loss_{name}"] = np.full(len(right["index"]), np.nan)
            saved[f"loss_{name}"][rows] = other["loss"]
        bootstrap.save_examples(folder, right["index"], **saved)
        alone = len(right["index"]) - len(known.partner)
        protocol = (
            f"loss in nats per learned token with the right image, another's and none, n={len(right['index'])}, "
            f"{classification.interval_protocol()}"
        ) + base.notes(
            grounding.verdict(gaps), f"{alone:,} examples had no other image to be swapped with" if alone else ""
        )
        return base.Result({name: float(value) for name, value in metrics.items()}, protocol)

    def warning(self, metrics: Mapping[str, float], before: Mapping[int, Mapping[str, float]]) -> str:
        """Says which gaps are closed: of an interval that is not above 0, or below half of the best so far."""
        found = []
        for condition, name in NAMES.items():
            gap = f"gap_{name}"
            if gap not in metrics:
                continue
            value, low, high = metrics[gap], metrics[f"{gap}_low"], metrics[f"{gap}_high"]
            best = max(
                (step for step in before if gap in before[step]), key=lambda step: before[step][gap], default=None
            )
            if low <= 0:
                found.append(f"{SAID[condition]} costs {value:.3g} [{low:.3g}, {high:.3g}], no more than chance")
            elif best is not None and value < KEPT * before[best][gap]:
                found.append(
                    f"{SAID[condition]} costs {value:.3g}, less than half of the {before[best][gap]:.3g} of step {best}"
                )
        if not found:
            return ""
        return f"the gap between the right image and others is closed: {'; '.join(found)} (nats per token)"

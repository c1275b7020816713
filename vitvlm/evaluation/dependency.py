"""Visual dependency of records: what the likelihood of an answer gains by seeing the image."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float

from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base, bootstrap, classification, other_images
from vitvlm.evaluation.writing import Texts

FILE = "visual_dependency.jsonl"
COLUMN = "visual_dependency"
PLANTED = ("blind", "foreign")


@dataclasses.dataclass(frozen=True)
class VisualDependency(base.Evaluator):
    """Scores records, those of a training split for one, by log p(answer | image, prompt) - log p(answer | prompt).

    About 0 says that the answer needs no image; below 0, that it is unlikely to be about this image. Training data can
    be chosen by it: `config.data.train.scores` names the file (see `data.sources.scored`).

    Writes `visual_dependency.jsonl`, a line for each record: id, visual_dependency, log_likelihood,
    blind_log_likelihood, all in nats, and tokens. `examples.npz` has the same arrays.

    Metrics: visual_dependency, the mean with its interval; at_most_zero, the share of records that seeing the image
    does not help; n; and, where it is known which records were planted, auroc and auroc_KIND: how often such a record
    has a lower score than one that was not.

    Fields:
      planted: the field of the records that says what was planted, "none" or one of `kinds`; "" if nothing was.
      kinds: what may be planted.
      output: the prediction function.
    """

    compared: ClassVar[None] = None

    batches: base.Batches
    texts: Texts
    example_id: Callable[[int], str] = str
    planted: str = ""
    kinds: tuple[str, ...] = PLANTED
    output: str = "log_likelihood"

    @property
    def metrics(self) -> tuple[str, ...]:
        found = ("auroc", *(f"auroc_{kind}" for kind in self.kinds)) if self.planted else ()
        return (COLUMN, "at_most_zero", "n", *found)

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"output": self.output}

    def check(self, facts: base.Facts) -> None:
        if "text_segments" in facts.arrays:
            raise ConfigError("batches: rows of several records: leave pack out of the evaluated split's operations")
        if self.planted and facts.text(self.planted) is None:
            raise ConfigError(f"planted: records of {facts.name} have no {self.planted!r}")

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        def outputs(batch: base.Batch) -> base.Arrays:
            seen = predict(self.output, variables, other_images.with_mask(batch))
            blind = predict(self.output, variables, other_images.blind(batch))
            return {
                "log_likelihood": np.asarray(seen["log_likelihood"], np.float64),
                "blind_log_likelihood": np.asarray(blind["log_likelihood"], np.float64),
                "tokens": np.asarray(seen["learned_tokens"]),
            }

        whole = base.collect(self.batches, outputs)
        index = whole["index"]
        ids = [self.example_id(int(i)) for i in index]
        columns = {COLUMN: whole["log_likelihood"] - whole["blind_log_likelihood"]}
        columns |= {name: whole[name] for name in ("log_likelihood", "blind_log_likelihood", "tokens")}
        bootstrap.save_examples(folder, index, id=np.array(ids), **columns)
        if not jax.process_index():
            write(pathlib.Path(folder) / FILE, ids, columns)
        score = columns[COLUMN]
        metrics = classification.with_interval(COLUMN, score)
        metrics |= {"at_most_zero": float(np.mean(score <= 0)), "n": float(len(score))}
        if self.planted:
            metrics |= self._found(score, np.array([self.texts(int(i), self.planted) for i in index]))
        protocol = (
            f"log-likelihood of each answer with its image minus that without (image_mask 0), in nats, n={len(score)}; "
            f"{classification.interval_protocol()}"
        )
        return base.Result(metrics, protocol)

    def _found(self, score: np.ndarray, planted: np.ndarray) -> dict[str, float]:
        if strange := sorted(set(planted.tolist()) - {"none", *self.kinds}):
            raise ValueError(f"{self.planted!r} says {strange[0]!r}, and kinds are {', '.join(self.kinds)}")
        clean = planted == "none"
        metrics = {"auroc": auroc(-score[~clean], -score[clean])}
        for kind in self.kinds:
            metrics[f"auroc_{kind}"] = auroc(-score[planted == kind], -score[clean])
        return metrics


def auroc(positive: Float[np.ndarray, " p"], negative: Float[np.ndarray, " n"]) -> float:
    """Returns the share of pairs in which the positive has the higher value, ties counted half: the area under ROC.

    Raises ValueError if there is no pair.
    """
    if not len(positive) or not len(negative):
        raise ValueError(f"{len(positive)} positive and {len(negative)} negative values: none to compare with")
    ordered = np.sort(negative)
    below, upto = (np.searchsorted(ordered, positive, side=side) for side in ("left", "right"))
    return float((below + upto).sum() / 2 / len(positive) / len(negative))


def write(path: pathlib.Path, ids: list[str], columns: Mapping[str, np.ndarray]) -> None:
    """Writes a JSON line for each record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row, id_ in enumerate(ids):
            values = {name: array[row].item() for name, array in columns.items()}
            file.write(json.dumps({"id": id_, **values}, ensure_ascii=False) + "\n")

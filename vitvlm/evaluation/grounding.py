"""Grounding: whether a model that sees images uses them, told beside every score of it.

An evaluation is run again with the images of other examples, with none, with the mean image and with noise; what is
lost, by paired comparison, is what the right image is worth.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from vitvlm.core.config import ConfigError, suggest
from vitvlm.evaluation import answers_page, base, bootstrap, choices, other_images, page, statistics
from vitvlm.evaluation.other_images import BLIND, CONDITIONS, SWAPPED
from vitvlm.evaluation.questions import by_type
from vitvlm.nn.gates import gates

COLUMNS = ("condition", "type", "n", "right", "other", "drop", "low", "high")
FOLDER = "grounding"
PREFIX = "grounding"


@dataclasses.dataclass(frozen=True)
class Grounded(base.Evaluator):
    """An evaluator and, beside its figures, what becomes of them with other images.

    Metrics, besides the evaluator's: for each condition, grounding_CONDITION, the mean of what is compared;
    grounding_CONDITION_drop, what is lost (with its paired bootstrap interval); grounding_CONDITION_p, the p-value of
    a paired randomization test; and, of answers, grounding_CONDITION_changed, the share that become others.
    grounding_uses_image is 1 if what is lost is above 0, interval and all, with other images and with none; the
    protocol ends with a sentence that says so. Of a model whose attention is predicted, grounding_attention is the
    share of attention on image tokens over their share of all tokens looked at, the mean over layers and heads.

    Writes, to grounding/: a folder with the evaluator's own files for each condition; drops.csv, also by type of
    question; attention.csv, by layer and head; and weights.csv, statistics of the matrices between image and text. What
    a model writes is shown in page.html, beside what it writes without the image.

    Fields:
      evaluator: what it runs; it has a `compared`.
      conditions: of `other_images.CONDITIONS`.
      images: an example's fields of images by index, as the model gets them.
      types: an example's type of question: images are swapped within a type.
      attention: the prediction function that gives the attention on image tokens; "" for none.
      attention_examples: of how many examples.
      picture: how an example's image is shown, in page.html, which the evaluator's `max_images` bounds.
      between: paths of parameters that connect image and text begin with these names.
    """

    evaluator: base.Evaluator
    conditions: tuple[str, ...] = CONDITIONS
    images: other_images.Images | None = None
    types: Callable[[int], str] = lambda index: ""
    attention: str = ""
    attention_examples: int = 64
    between: tuple[str, ...] = ("connector",)
    picture: page.Picture | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.evaluator.compared is None:
            raise TypeError(f"{type(self.evaluator).__name__} has nothing to compare")
        for name in self.conditions:
            if name not in CONDITIONS:
                raise ConfigError(f"grounding: {name!r}; {suggest(name, CONDITIONS)}")

    @property
    def metrics(self) -> tuple[str, ...]:
        figures = ("", "_drop", "_p", *(("_changed",) if self.evaluator.has_answers else ()))
        own = tuple(f"{PREFIX}_{name}{figure}" for name in self.conditions for figure in figures)
        used = (f"{PREFIX}_uses_image",) if self.conditions else ()
        return (*self.evaluator.metrics, *own, *used, *((f"{PREFIX}_attention",) if self.attention else ()))

    @property
    def predictions(self) -> Mapping[str, str]:
        return self.evaluator.predictions

    def check(self, facts: base.Facts) -> None:
        self.evaluator.check(facts)

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        folder = pathlib.Path(folder)
        known = other_images.survey(self.evaluator.batches, self.types, self.seed)
        result = self._with(None, known).run(predict, variables, folder)
        own = _read(folder)
        metrics, rows, cannot = dict(result.metrics), [], 0
        drops: dict[str, bootstrap.Interval] = {}
        others: dict[str, dict[str, np.ndarray]] = {}
        for name in self.conditions:
            if name == SWAPPED and not known.partner:
                cannot = len(own["index"])
                continue
            place = folder / FOLDER / name
            place.mkdir(parents=True, exist_ok=True)
            self._with(name, known).run(predict, variables, place)
            others[name] = _read(place)
            here = _of_rows(own, others[name]["index"])
            first, second = here[self.evaluator.compared], others[name][self.evaluator.compared]
            drops[name] = bootstrap.difference(first, second)
            metrics |= _figures(name, first, second, drops[name])
            if self.evaluator.has_answers:
                metrics[f"{PREFIX}_{name}_changed"] = float(np.mean(here["answer"] != others[name]["answer"]))
            rows += self._rows(name, first, second, others[name]["index"])
            cannot += len(own["index"]) - len(first) if name == SWAPPED else 0
        sentence = verdict(drops)
        if self.conditions:
            metrics[f"{PREFIX}_uses_image"] = float(uses_image(drops))
            write_rows(folder / FOLDER / "drops.csv", COLUMNS, rows)
        parts = [sentence, f"{cannot:,} examples had no other image to be swapped with" if cannot else ""]
        if self.attention:
            found = self._attention(predict, variables, folder / FOLDER)
            metrics[f"{PREFIX}_attention"] = found
            parts.append(f"image tokens get {found:.2f} times their share of the attention")
        self._weights(variables, folder / FOLDER)
        result = dataclasses.replace(result, metrics=metrics, protocol=result.protocol + base.notes(*parts))
        if not self.evaluator.has_answers:
            return result
        how = (self.evaluator.compared, self.evaluator.max_images, self.picture, self.types)
        return answers_page.write(folder, result, own, others, *how)

    def _with(self, condition: str | None, known: other_images.Known) -> base.Evaluator:
        batches = other_images.changed(self.evaluator.batches, condition, known, self.images, self.seed)
        return dataclasses.replace(self.evaluator, batches=batches)

    def _rows(self, name: str, first: np.ndarray, second: np.ndarray, index: np.ndarray) -> list[tuple[Any, ...]]:
        """Rows of drops.csv: of all examples, then of each type."""
        kinds = np.array([self.types(int(i)) for i in index])
        parts = [("all", np.ones(len(index), bool))]
        parts += [(kind, kinds == kind) for kind in by_type(first, kinds)] if len(set(kinds)) > 1 else []
        rows = []
        for kind, own in parts:
            found = bootstrap.difference(first[own], second[own])
            figures = (first[own].mean(), second[own].mean(), *found)
            rows.append((name, kind, int(own.sum()), *(f"{value:.5g}" for value in figures)))
        return rows

    def _attention(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> float:
        """Writes attention.csv of the first examples; returns the mean attention on image tokens over their share."""
        seen, parts = 0, []
        for batch in self.evaluator.batches():
            real = np.asarray(batch["example_mask"]) > 0
            found = predict(self.attention, variables, choices.of_candidate(batch, 0))
            parts.append({name: np.asarray(value, np.float64)[real] for name, value in found.items()})
            seen += int(real.sum())
            if seen >= self.attention_examples:
                break
        mass, share = (np.concatenate([part[name] for part in parts]).mean(axis=0) for name in ("mass", "share"))
        rows = [
            (layer, head, f"{mass[layer, head]:.5f}", f"{share[layer]:.5f}", f"{ratio(mass, share)[layer, head]:.4f}")
            for layer, head in np.ndindex(*mass.shape)
        ]
        write_rows(folder / "attention.csv", ("layer", "head", "mass", "share", "ratio"), rows)
        return float(ratio(mass, share).mean())

    def _weights(self, variables: base.Variables, folder: pathlib.Path) -> None:
        """Writes weights.csv, statistics of the matrices between image and text, and gates.csv, tanh of each gate."""
        rows = statistics.of_matrices(variables["params"], self.between) if "params" in variables else []
        if rows:
            write_rows(folder / "weights.csv", statistics.COLUMNS, rows)
        if "params" in variables and (found := gates(variables["params"])):
            values = [
                (branch, layer, f"{float(value):.5f}") for branch, own in found.items() for layer, value in own.items()
            ]
            write_rows(folder / "gates.csv", ("gate", "layer", "value"), values)


def uses_image(drops: Mapping[str, bootstrap.Interval]) -> bool:
    """Tells whether other images and none both cost something, beyond chance; of what was measured."""
    decisive = [drops[name] for name in (SWAPPED, BLIND) if name in drops] or list(drops.values())
    return all(found.low > 0 for found in decisive)


def verdict(drops: Mapping[str, bootstrap.Interval]) -> str:
    """One sentence that says whether the image is used; "" if nothing was compared."""
    if not drops:
        return ""
    names = {SWAPPED: "another's image", BLIND: "no image", "mean": "the mean image", "noise": "noise"}
    costs = ", ".join(
        f"{names[name]} costs {found.estimate:.3g} [{found.low:.3g}, {found.high:.3g}]" for name, found in drops.items()
    )
    return f"{'the image is used' if uses_image(drops) else 'NO EVIDENCE that the image is used'}: {costs}"


def ratio(mass: Float[np.ndarray, "layers heads"], share: Float[np.ndarray, " layers"]) -> np.ndarray:
    """The attention on image tokens over their share of what is looked at; 1 where all tokens get the same."""
    return mass / np.maximum(share, 1e-12)[:, None]


def write_rows(path: pathlib.Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Writes a CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)


def _figures(name: str, first: np.ndarray, second: np.ndarray, drop: bootstrap.Interval) -> dict[str, float]:
    start = f"{PREFIX}_{name}"
    return {
        start: float(np.mean(second)),
        f"{start}_drop": drop.estimate,
        f"{start}_drop_low": drop.low,
        f"{start}_drop_high": drop.high,
        f"{start}_p": bootstrap.sign_test(first, second),
    }


def _read(folder: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(folder / bootstrap.EXAMPLES) as saved:
        return dict(saved)


def _of_rows(saved: Mapping[str, np.ndarray], index: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays at the examples of this index, in its order; both are sorted."""
    rows = np.searchsorted(saved["index"], index)
    return {name: array[rows] for name, array in saved.items() if len(array) == len(saved["index"])}

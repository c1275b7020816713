"""Answers that a model writes to questions, by a rule that says which are right."""

import csv
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vitvlm.core.config import ConfigError, suggest
from vitvlm.evaluation import base, bootstrap, classification
from vitvlm.evaluation.measures import matches, pope
from vitvlm.evaluation.writing import Judged, Writing


@dataclasses.dataclass(frozen=True)
class Questions(Writing):
    """The share of right answers.

    Metrics: accuracy with its bootstrap interval, mean_type_accuracy where there are `types`, and n. `types.csv` has
    the accuracy of each type. `examples.npz` has score, 0 to 1, and type of each.

    Fields, besides those of `Writing`:
      rule: "exact", "relaxed" (ChartQA: numbers within 5 %) or "vqa" (the published accuracy, by ten people's answers).
      answers: the field of the records that holds the true answers.
      types: the field that holds the type of a question; "" for none.
    """

    compared: ClassVar[str] = "score"

    rule: str = "exact"
    answers: str = "answer"
    types: str = ""
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in matches.RULES:
            raise ConfigError(f"rule: {self.rule!r}; {suggest(self.rule, matches.RULES)}")

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("accuracy", *(("mean_type_accuracy",) if self.types else ()), "n")

    @property
    def wanted(self) -> Mapping[str, str]:
        return {"answers": self.answers} | ({"types": self.types} if self.types else {})

    def check(self, facts: base.Facts) -> None:
        super().check(facts)
        found = facts.text(self.answers)
        if self.rule == "vqa" and (isinstance(found, str) or len(found) < 2):
            raise ConfigError(f"rule: 'vqa' compares with several people's answers, and {self.answers!r} holds one")

    def judge(self, written: Sequence[str], index: np.ndarray) -> Judged:
        truths = [self.needed(int(i), self.answers) for i in index]
        rule = matches.RULES[self.rule]
        score = np.array([rule(text, own) for text, own in zip(written, truths)])
        arrays = {"score": score, "type": kinds(self, index)}
        metrics = classification.with_interval("accuracy", score)
        if self.types:
            metrics["mean_type_accuracy"] = float(np.mean(list(by_type(score, arrays["type"]).values())))
        said = f"answers right by {matches.SAID[self.rule]}; {classification.interval_protocol()}"
        return Judged(metrics, said, [" / ".join(dict.fromkeys(own)) for own in truths], arrays)

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        result = super().run(predict, variables, folder)
        if self.types:
            with np.load(pathlib.Path(folder) / bootstrap.EXAMPLES) as saved:
                write_types(pathlib.Path(folder), saved["score"], saved["type"])
        return result


@dataclasses.dataclass(frozen=True)
class Pope(Writing):
    """POPE (Li et al. 2023): questions whether a thing is in the image, answered yes or no.

    Metrics, with the parser's name in each but n: accuracy (with its interval), precision, recall and F1 of "yes",
    yes_share and unknown_share. `examples.npz` has score and type of each, and how the parser read it.

    Fields, besides those of `Writing`:
      parsers: those to report, of `measures.pope.PARSERS`; the first is the one that examples are scored by.
      answers: the field of the records that holds yes or no; types: that of the kind of question ("random",
        "popular", "adversarial"), "" for none.
    """

    compared: ClassVar[str] = "score"

    parsers: tuple[str, ...] = tuple(pope.PARSERS)
    answers: str = "answer"
    types: str = ""
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parsers:
            raise ConfigError(f"parsers: none; there is: {', '.join(pope.PARSERS)}")
        for name in self.parsers:
            if name not in pope.PARSERS:
                raise ConfigError(f"parsers: {name!r}; {suggest(name, pope.PARSERS)}")

    @property
    def metrics(self) -> tuple[str, ...]:
        figures = ("accuracy", "precision", "recall", "f1", "yes_share", "unknown_share")
        return (*(f"{figure}_{name}" for name in self.parsers for figure in figures), "n")

    @property
    def wanted(self) -> Mapping[str, str]:
        return {"answers": self.answers} | ({"types": self.types} if self.types else {})

    def judge(self, written: Sequence[str], index: np.ndarray) -> Judged:
        truths = [self.needed(int(i), self.answers)[0].strip().lower() for i in index]
        metrics: dict[str, float] = {}
        arrays: dict[str, np.ndarray] = {"type": kinds(self, index)}
        for name in self.parsers:
            read = [pope.PARSERS[name](text) for text in written]
            right = np.array([a == b for a, b in zip(read, truths)])
            metrics |= {f"{figure}_{name}": value for figure, value in pope.scores(read, truths).items()}
            metrics |= classification.with_interval(f"accuracy_{name}", right)
            arrays |= {f"read_{name}": np.array(read)} | ({} if "score" in arrays else {"score": right.astype(float)})
        said = "; ".join(f"{name}: {pope.SAID[name]}" for name in self.parsers)
        protocol = f"POPE, read by {said}; an unknown answer is wrong; {classification.interval_protocol()}"
        return Judged(metrics, protocol, truths, arrays)


def kinds(evaluator: Writing, index: np.ndarray) -> np.ndarray:
    """The type of each question, as a text; "" where the evaluator has no `types`."""
    if not evaluator.types:
        return np.full(len(index), "")
    return np.array([", ".join(evaluator.needed(int(i), evaluator.types)) for i in index])


def by_type(score: np.ndarray, types: np.ndarray) -> dict[str, float]:
    """The mean score of each type, in the order of their names."""
    return {str(name): float(score[types == name].mean()) for name in np.unique(types)}


def write_types(folder: pathlib.Path, score: np.ndarray, types: np.ndarray) -> None:
    """Writes types.csv: a row for each type with its number of examples and its mean score with bounds."""
    with (folder / "types.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["type", "n", "score", "low", "high"])
        for name in by_type(score, types):
            own = score[types == name]
            table.writerow([name, len(own), *(f"{value:.4f}" for value in bootstrap.mean(own))])

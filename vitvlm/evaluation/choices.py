"""Choices by likelihood: which of several texts about an image a model finds the likeliest."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from vitvlm.core.config import ConfigError, suggest
from vitvlm.evaluation import base, bootstrap, classification
from vitvlm.evaluation.writing import Texts

NORMALIZATIONS = ("none", "tokens")
EACH = ("text_tokens", "text_mask", "text_learned", "image_index")


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """Log-likelihoods of the candidates of n examples.

    Attributes:
      values: [n, T], perhaps per token; is_text: [n, T], False where there is no candidate; index: [n].
    """

    values: Float[np.ndarray, "n T"]
    is_text: Bool[np.ndarray, "n T"]
    index: np.ndarray


def likelihoods(
    predict: base.Predict, output: str, variables: base.Variables, batches: base.Batches, normalize: str
) -> Likelihoods:
    """Scores all candidates: batches hold text_tokens, text_mask, text_learned [B, T, L] (`supervise_each`)."""

    def outputs(batch: base.Batch) -> base.Arrays:
        totals, tokens = [], []
        for place in range(np.shape(batch["text_tokens"])[1]):
            found = predict(output, variables, of_candidate(batch, place))
            totals.append(np.asarray(found["log_likelihood"], np.float64))
            tokens.append(np.asarray(found["learned_tokens"], np.float64))
        return {
            "total": np.stack(totals, axis=1),
            "tokens": np.stack(tokens, axis=1),
            "is_text": np.asarray(batch["text_learned"]).any(axis=-1),
        }

    whole = base.collect(batches, outputs)
    values = whole["total"] / (np.maximum(whole["tokens"], 1) if normalize == "tokens" else 1)
    return Likelihoods(np.where(whole["is_text"], values, -np.inf), whole["is_text"], whole["index"])


def of_candidate(batch: base.Batch, place: int) -> dict[str, np.ndarray]:
    """Returns a batch with one of its candidates alone; a batch without several is itself."""
    if np.ndim(batch["text_tokens"]) < 3:
        return dict(batch)
    return {name: np.asarray(array)[:, place] if name in EACH else array for name, array in batch.items()}


def check(facts: base.Facts, normalize: str) -> None:
    """Raises ConfigError for data without candidates, and for an unknown normalization."""
    if "text_learned" not in facts.arrays:
        raise ConfigError("batches: no candidates: add supervise_each(TOKENIZER, L, FIELD, most) to the operations")
    if normalize not in NORMALIZATIONS:
        raise ConfigError(f"normalize: {normalize!r}; {suggest(normalize, NORMALIZATIONS)}")


@dataclasses.dataclass(frozen=True)
class MultipleChoice(base.Evaluator):
    """The share of examples of which the right candidate is the likeliest; a tie is wrong.

    Metrics: accuracy with its bootstrap interval; margin, the mean by which the right one is likelier than the best
    other, in nats; chance; and n. Writes `examples.npz`: index, id, score (1 if right), margin, values [n, T], answer
    and truth (texts).

    Fields:
      candidates: the field of the records that holds the candidates, in the order of the batches' rows.
      right: the field with the text of the right one; "": it is the first.
      normalize: "none" compares log p(text), "tokens" that per token.
      question: the field with the question, for the page.
    """

    compared: ClassVar[str] = "score"
    has_answers: ClassVar[bool] = True

    batches: base.Batches
    texts: Texts
    example_id: Callable[[int], str] = str
    candidates: str = "choices"
    right: str = ""
    normalize: str = "none"
    question: str = "question"
    max_images: int = 100
    output: str = "log_likelihood"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("accuracy", "margin", "chance", "n")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"output": self.output}

    def check(self, facts: base.Facts) -> None:
        check(facts, self.normalize)
        for field in ("candidates", "right"):
            if (name := getattr(self, field)) and facts.text(name) is None:
                raise ConfigError(f"{field}: records of {facts.name} have no {name!r}")

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        found = likelihoods(predict, self.output, variables, self.batches, self.normalize)
        n = len(found.index)
        names = [self._of(int(i), self.candidates) for i in found.index]
        right = np.array([self._right(int(i), own) for i, own in zip(found.index, names)])
        own = found.values[np.arange(n), right]
        others = np.where(np.arange(found.values.shape[1]) == right[:, None], -np.inf, found.values)
        if np.any(alone := ~np.isfinite(others.max(axis=1))):
            raise ValueError(f"{self.example_id(int(found.index[alone][0]))}: has one candidate: nothing to choose")
        margin = own - others.max(axis=1)
        score = (margin > 0).astype(np.float64)
        chance = float(np.mean(1 / found.is_text.sum(axis=1)))
        bootstrap.save_examples(
            folder,
            found.index,
            id=np.array([self.example_id(int(i)) for i in found.index]),
            score=score,
            margin=margin,
            values=found.values,
            answer=np.array([each[int(row.argmax())] for each, row in zip(names, found.values)]),
            truth=np.array([each[place] for each, place in zip(names, right)]),
            question=np.array([" ".join(self._of(int(i), self.question)) for i in found.index]),
        )
        metrics = classification.with_interval("accuracy", score)
        metrics |= {"margin": float(margin.mean()), "chance": chance, "n": float(n)}
        per = " per token" if self.normalize == "tokens" else ""
        protocol = (
            f"multiple choice by log-likelihood{per}, n={n}; a tie is wrong; chance {chance:.1%}; "
            f"{classification.interval_protocol()}"
        )
        return base.Result(metrics, protocol)

    def _of(self, index: int, name: str) -> tuple[str, ...]:
        found = self.texts(index, name)
        return (found,) if isinstance(found, str) else tuple(found or ())

    def _right(self, index: int, names: tuple[str, ...]) -> int:
        if not self.right:
            return 0
        (truth,) = self._of(index, self.right) or ("",)
        if truth not in names:
            raise ValueError(f"{self.example_id(index)}: the right answer {truth!r} is none of {self.candidates!r}")
        return names.index(truth)

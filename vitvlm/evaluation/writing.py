"""Base of evaluators of what a model writes about each example, such as captions and answers."""

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from vitvlm.core.config import ConfigError, suggest
from vitvlm.evaluation import base, bootstrap

Texts = Callable[[int, str], str | tuple[str, ...] | None]
Detokenize = Callable[[Sequence[Sequence[int]]], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Writing(base.Evaluator):
    """Has a model write after each example's prompt, the likeliest token at a time, and judges the texts.

    The prompt is what stands before the first token that is learned, as the operation `supervise` makes it. A text ends
    with the token that ends the learned ones (`stop_ids`), or after `max_new_tokens`.

    Writes `examples.npz`: index, id, answer, truth and question, as texts, and what the kind adds for each example.

    Fields:
      max_new_tokens: the most tokens of a text.
      question: the field of the records with what is asked, for the page; nothing if they have none.
      max_images: how many examples page.html shows, which a model that sees images has (`grounding`); 0: no page.
      output: the prediction function: ids [B, T], -1 behind the end.
    """

    has_answers: ClassVar[bool] = True

    batches: base.Batches
    detokenize: Detokenize
    texts: Texts
    stop_ids: tuple[int, ...] = ()
    example_id: Callable[[int], str] = str
    max_new_tokens: int = 32
    question: str = "question"
    max_images: int = 100
    output: str = "generate"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens: {self.max_new_tokens}; give 1 or more")

    @property
    def predictions(self) -> Mapping[str, str]:
        return {"output": self.output}

    @property
    @abc.abstractmethod
    def wanted(self) -> Mapping[str, str]:
        """The fields of the records that it needs, by the names of its own fields that choose them."""

    @abc.abstractmethod
    def judge(self, written: Sequence[str], index: np.ndarray) -> "Judged":
        """Judges the texts about the examples of these numbers."""

    def check(self, facts: base.Facts) -> None:
        if not {"text_learned", "answer_tokens"} & set(facts.arrays):
            raise ConfigError("batches: no prompts to write after: add supervise(TOKENIZER, L) to the operations")
        if "text_segments" in facts.arrays:
            raise ConfigError("batches: rows of several records: leave pack out of the evaluated split's operations")
        for field, name in self.wanted.items():
            if facts.text(name) is None:
                known = [each for each in _USUAL if facts.text(each) is not None]
                raise ConfigError(f"{field}: records of {facts.name} have no {name!r}; {suggest(name, known)}")

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        def outputs(batch: base.Batch) -> base.Arrays:
            how = {"max_new_tokens": self.max_new_tokens, "stop_ids": self.stop_ids}
            return {"ids": np.asarray(predict(self.output, variables, batch, **how)["ids"])}

        whole = base.collect(self.batches, outputs)
        index = whole["index"]
        written = [text.strip() for text in self.detokenize([_content(row, self.stop_ids) for row in whole["ids"]])]
        judged = self.judge(written, index)
        ids = np.array([self.example_id(int(i)) for i in index])
        asked = [" ".join(self.of(int(i), self.question)) for i in index]
        kept = {"answer": np.array(written), "truth": np.array(judged.truths), "question": np.array(asked)}
        bootstrap.save_examples(folder, index, id=ids, **kept, **judged.arrays)
        finished = [bool(set(row.tolist()) & {-1, *self.stop_ids}) for row in whole["ids"]]
        cut = len(finished) - sum(finished)
        protocol = (
            f"{judged.protocol}; greedy, at most {self.max_new_tokens} tokens"
            f"{base.notes(f'{cut:,} texts were cut there' if cut else '')}; n={len(index)}"
        )
        return base.Result(judged.metrics | {"n": float(len(index))}, protocol)

    def of(self, index: int, name: str) -> tuple[str, ...]:
        """An example's texts of a field; none if it has none."""
        found = self.texts(index, name)
        return (found,) if isinstance(found, str) else tuple(found or ())

    def needed(self, index: int, name: str) -> tuple[str, ...]:
        """The same. Raises ValueError, which names the example, if there is none."""
        if not (found := self.of(index, name)):
            raise ValueError(f"{self.example_id(index)}: has no {name!r} to judge by")
        return found


@dataclasses.dataclass(frozen=True)
class Judged:
    """An evaluator's judgement of texts.

    Attributes:
      metrics, protocol: see `base.Result`.
      truths: [n], what would have been right, as a text.
      arrays: values of each example by name, [n, …].
    """

    metrics: dict[str, float]
    protocol: str
    truths: Sequence[str]
    arrays: Mapping[str, Any]


_USUAL = (
    "caption",
    "captions",
    "answer",
    "answers",
    "output",
    "text",
    "name",
    "keywords",
    "objects",
    "things",
    "label",
)


def _content(row: np.ndarray, stop_ids: Sequence[int]) -> list[int]:
    """The ids of a text before its end."""
    ids = row[row >= 0].tolist()
    ends = [place for place, token in enumerate(ids) if token in stop_ids]
    return ids[: ends[0]] if ends else ids

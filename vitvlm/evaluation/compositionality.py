"""Compositionality: is the right caption preferred to one that sounds like it and is false? (Yuksekgonul et al. 2023;
Hsieh et al. 2023.)"""

import dataclasses
import pathlib
from typing import ClassVar

import numpy as np

from vitvlm.core.config import ConfigError, suggest
from vitvlm.evaluation import base, bootstrap, choices, classification, nearest
from vitvlm.evaluation.nearest import TIE
from vitvlm.evaluation.retrieval import check_texts, with_texts

BY = ("similarity", "likelihood")


@dataclasses.dataclass(frozen=True)
class Compositionality(base.Evaluator):
    """The share of images that are more similar to their caption than to a hard negative, or make it the likelier.

    Batches hold text [B, 1 + K, L] and text_mask: the right caption, then one negative of each kind; an empty row is
    no negative, and does not count. A tie is wrong, so that a tower that sees no order of words is below chance.

    Fields:
      kinds: names of the negatives, in their order; those of the source "scenes" by default.
      by: "similarity" of two towers; or "likelihood" of a language model, whose batches have text_learned too
        (`supervise_each`).
      normalize: of likelihoods, "none" or by their "tokens", of which negatives have more in some sets.

    Metrics: one of each kind with its bootstrap interval, all_kinds (above all negatives of the image at once), and n.
    """

    batches: base.Batches
    kinds: tuple[str, ...] = ("swap_attribute", "swap_relation", "replace_attribute", "replace_thing")
    by: str = "similarity"
    normalize: str = "none"

    compared: ClassVar[str] = "margin"

    def check(self, facts: base.Facts) -> None:
        if self.by not in BY:
            raise ConfigError(f"by: {self.by!r}; {suggest(self.by, BY)}")
        if self.by == "likelihood":
            choices.check(facts, self.normalize)
        check_texts(facts)

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*self.kinds, "all_kinds", "n")

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        if self.by == "likelihood":
            found = choices.likelihoods(predict, "log_likelihood", variables, self.batches, self.normalize)
            there, similarity, index = found.is_text, found.values, found.index
        else:
            whole = with_texts(predict, variables, self.batches)
            there, index = whole["is_text"], whole["index"]
            columns = whole["text"].swapaxes(0, 1)
            similarity = np.stack([nearest.own_similarities(whole["image"], text) for text in columns], axis=1)
        count = similarity.shape[1] - 1
        if count != len(self.kinds):
            raise ConfigError(f"kinds: {len(self.kinds)} names, and {count} texts of each image after the first")
        if not there[:, 0].all():
            raise ValueError("compositionality: an image has no right caption, its first text is empty")
        right = similarity[:, :1] > similarity[:, 1:] + TIE
        metrics: dict[str, float] = {}
        for kind, column, known in zip(self.kinds, right.T, there[:, 1:].T, strict=True):
            if not known.any():
                raise ValueError(f"compositionality: no image has a negative of kind {kind!r}")
            metrics |= classification.with_interval(kind, column[known])
        metrics |= classification.with_interval("all_kinds", (right | ~there[:, 1:]).all(axis=1))
        others = np.where(there[:, 1:], similarity[:, 1:], -np.inf).max(axis=1)
        margin = np.where(np.isfinite(others), similarity[:, 0] - others, 0)
        bootstrap.save_examples(folder, index, right=right, similarity=similarity, margin=margin)
        what = "cosine similarity" if self.by == "similarity" else "log-likelihood"
        per = " per token" if self.by == "likelihood" and self.normalize == "tokens" else ""
        protocol = (
            f"compositionality, {len(right)} images, {what}{per} of the caption above that of the negative; ties "
            f"are wrong; chance 50 % of each kind, {1 / (1 + count):.0%} of all kinds; "
            f"{classification.interval_protocol()}"
        )
        return base.Result(metrics | {"n": float(len(right))}, protocol)

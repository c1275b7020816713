"""Compositionality: is the right caption preferred to one that sounds like it and is false? (Yuksekgonul et al. 2023;
Hsieh et al. 2023.)"""

import dataclasses
import pathlib

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base, bootstrap, classification
from vitvlm.evaluation.nearest import TIE
from vitvlm.evaluation.retrieval import check_texts, with_texts


@dataclasses.dataclass(frozen=True)
class Compositionality(base.Evaluator):
    """The share of images that are more similar to their caption than to a hard negative of it.

    Batches hold text [B, 1 + K, L] and text_mask: the right caption, then one negative of each kind; an empty row is
    no negative, and does not count. A tie is wrong, so that a tower that sees no order of words is below chance.

    Fields:
      kinds: names of the negatives, in their order; those of the source "scenes" by default.

    Metrics: one of each kind with its bootstrap interval, all_kinds (above all negatives of the image at once), and n.
    """

    batches: base.Batches
    kinds: tuple[str, ...] = ("swap_attribute", "swap_relation", "replace_attribute", "replace_thing")

    def check(self, facts: base.Facts) -> None:
        check_texts(facts)

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*self.kinds, "all_kinds", "n")

    def run(self, predict: base.Predict, variables: base.Variables, folder: pathlib.Path) -> base.Result:
        whole = with_texts(predict, variables, self.batches)
        there, count = whole["is_text"], whole["text"].shape[1] - 1
        if count != len(self.kinds):
            raise ConfigError(f"kinds: {len(self.kinds)} names, and {count} texts of each image after the first")
        if not there[:, 0].all():
            raise ValueError("compositionality: an image has no right caption, its first text is empty")
        similarity = np.einsum("ne,nte->nt", whole["image"], whole["text"])
        right = similarity[:, :1] > similarity[:, 1:] + TIE
        metrics: dict[str, float] = {}
        for kind, column, known in zip(self.kinds, right.T, there[:, 1:].T, strict=True):
            if not known.any():
                raise ValueError(f"compositionality: no image has a negative of kind {kind!r}")
            metrics |= classification.with_interval(kind, column[known])
        metrics |= classification.with_interval("all_kinds", (right | ~there[:, 1:]).all(axis=1))
        bootstrap.save_examples(folder, whole["index"], right=right, similarity=similarity)
        protocol = (
            f"compositionality, {len(right)} images, cosine similarity of the caption above that of the negative; ties "
            f"are wrong; chance 50 % of each kind, {1 / (1 + count):.0%} of all kinds; "
            f"{classification.interval_protocol()}"
        )
        return base.Result(metrics | {"n": float(len(right))}, protocol)

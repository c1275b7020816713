"""Things that a model's captions mention and its images do not show: CHAIR (Rohrbach et al. 2018)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.evaluation import base, bootstrap, classification
from vitvlm.evaluation.measures import chair
from vitvlm.evaluation.writing import Judged, Writing


@dataclasses.dataclass(frozen=True)
class Chair(Writing):
    """The share of mentioned objects that are not in the image, and of captions with at least one such mention.

    An image has the objects that its record lists, and those that its true captions mention.

    Metrics: chair_i, of mentions, and chair_s, of captions, with bootstrap intervals over captions; recall, the share
    of the images' objects that are mentioned; mentions, per caption; and n. `examples.npz` has each one's mentions and
    hallucinated, and faithful: whether it has none of the latter.

    Fields, besides those of `Writing`:
      objects: the field of the records that lists what is in the image; "" for none.
      references: the field with true captions, "" for none.
      synonyms: other names of each object, by its name; by default COCO's 80 objects with CHAIR's published synonyms.
    """

    compared: ClassVar[str] = "faithful"

    objects: str = "objects"
    references: str = "captions"
    synonyms: Mapping[str, Sequence[str]] | None = None
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.objects and not self.references:
            raise ConfigError("objects: neither these nor references say what is in an image: give one of them")

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("chair_i", "chair_s", "recall", "mentions", "n")

    @property
    def wanted(self) -> Mapping[str, str]:
        return {field: name for field in ("objects", "references") if (name := getattr(self, field))}

    def check(self, facts: base.Facts) -> None:
        super().check(facts)
        if self.objects:
            listed = facts.text(self.objects)
            for name in (listed,) if isinstance(listed, str) else listed:
                try:
                    self._vocabulary.objects(name)
                except ValueError:
                    raise ConfigError(f"objects: {name!r} of {facts.name} is no known object; give synonyms") from None

    @property
    def _vocabulary(self) -> chair.Vocabulary:
        return chair.coco() if self.synonyms is None else chair.Vocabulary(self.synonyms, {})

    def judge(self, written: Sequence[str], index: np.ndarray) -> Judged:
        vocabulary = self._vocabulary
        counts, truths = np.zeros((len(written), 4)), []  # mentions, wrong ones, objects found, objects
        for row, (text, i) in enumerate(zip(written, index)):
            listed = self.of(int(i), self.objects) if self.objects else ()
            captions = self.of(int(i), self.references) if self.references else ()
            try:
                found = chair.hallucinated(vocabulary, text, listed, captions)
            except ValueError as error:
                raise ValueError(f"{self.example_id(int(i))}: {error}") from None
            named = {mention.object for mention in found.mentions}
            counts[row] = len(found.mentions), len(found.wrong), len(named & found.there), len(found.there)
            truths.append(", ".join(sorted(found.there)))
        mentions, wrong, recalled, there = counts.T
        metrics = _ratio("chair_i", wrong, mentions) | classification.with_interval("chair_s", wrong > 0)
        metrics |= {"recall": float(recalled.sum() / max(there.sum(), 1)), "mentions": float(mentions.mean())}
        words = "COCO's 80 with CHAIR's synonyms" if self.synonyms is None else f"{len(self.synonyms)} of the config"
        sources = " and ".join(f"{name!r}" for name in self.wanted.values())
        protocol = (
            f"CHAIR, objects {words}, an image's by {sources}; chair_i of {mentions.sum():,.0f} mentions; "
            f"{classification.interval_protocol()}"
        )
        arrays = {"mentions": mentions, "hallucinated": wrong, "faithful": (wrong == 0).astype(float)}
        return Judged(metrics, protocol, truths, arrays)


def _ratio(name: str, parts: np.ndarray, wholes: np.ndarray) -> dict[str, float]:
    """The share of all, with its bounds; 0 of nothing."""
    if not wholes.sum():
        return {name: 0.0, f"{name}_low": 0.0, f"{name}_high": 0.0}
    some = wholes > 0  # captions without a mention say nothing of a share of mentions
    estimate, low, high = bootstrap.ratio(parts[some], wholes[some])
    return {name: estimate, f"{name}_low": low, f"{name}_high": high}

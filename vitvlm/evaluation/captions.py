"""Captions that a model writes, by the published metrics of captions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from vitvlm.evaluation import bootstrap, classification
from vitvlm.evaluation.measures import bleu, cider, meteor, ptb, rouge
from vitvlm.evaluation.writing import Judged, Writing

GRAMS = 4


@dataclasses.dataclass(frozen=True)
class Captions(Writing):
    """BLEU-1 to BLEU-4, ROUGE-L, CIDEr-D and, where Java and pycocoevalcap are, METEOR, as coco-caption computes them.

    Metrics: bleu1 … bleu4 of all captions together; rouge_l and cider, means over captions with bootstrap intervals
    (CIDEr times 1, not 100); meteor; words, the mean length; and n. `examples.npz` has each caption's cider, rouge_l
    and bleu4.

    Fields, besides those of `Writing`:
      references: the field of the records that holds the true captions, one or several.
      meteor: whether to compute METEOR, where it can be.
    """

    compared: ClassVar[str] = "cider"

    references: str = "captions"
    meteor: bool = True

    @property
    def metrics(self) -> tuple[str, ...]:
        grams = tuple(f"bleu{n}" for n in range(1, GRAMS + 1))
        return (
            *grams,
            "rouge_l",
            "cider",
            *(("meteor",) if self.meteor and not meteor.missing() else ()),
            "words",
            "n",
        )

    @property
    def wanted(self) -> Mapping[str, str]:
        return {"references": self.references}

    def judge(self, written: Sequence[str], index: np.ndarray) -> Judged:
        truths = [self.needed(int(i), self.references) for i in index]
        texts, known = [ptb.words(text) for text in written], [[ptb.words(each) for each in own] for own in truths]
        grams = bleu.bleu(texts, known, GRAMS)
        each = {"cider": cider.cider(texts, known), "rouge_l": rouge.rouge_l(texts, known), "bleu4": grams.each[:, -1]}
        metrics = {f"bleu{n + 1}": float(value) for n, value in enumerate(grams.corpus)}
        for name in ("rouge_l", "cider"):
            metrics |= classification.with_interval(name, each[name])
        lack = "" if not self.meteor else meteor.missing()
        if self.meteor and not lack:
            found = meteor.meteor(texts, known)
            metrics["meteor"], each["meteor"] = found.corpus, found.each
        metrics["words"] = float(np.mean([len(text) for text in texts]))
        counts = sorted({len(own) for own in known})
        many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        protocol = (
            "captions by BLEU, ROUGE-L and CIDEr-D as coco-caption has them (PTB words without punctuation, rarity "
            f"from the {len(known)} evaluated images' own references, {many} each)"
            f"{'; ' + lack if lack else ''}; {bootstrap.CONFIDENCE:.0%} bootstrap over captions"
        )
        return Judged(metrics, protocol, [" / ".join(own) for own in truths], each)

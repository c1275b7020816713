"""Answers that a language model finds without the image: how many of the records it needs no image for."""

from collections.abc import Mapping, Sequence

import numpy as np

from vitvlm import generation, pretrained
from vitvlm.jobs.prepare.records import Blind, Told, candidates, choices

RECORDS = 500  # of each split, at most


def by_likelihood(records: Mapping[str, Sequence[Told]], weights: str, most: int = RECORDS) -> dict[str, Blind]:
    """Share of each split's records whose answer a language model finds likelier, per token, than its competitors.

    Those are the usual answers to the same kind of question; the model reads the question alone. Of a split with more
    than `most` records with short answers, evenly spread ones are taken.

    Args:
      weights: of the language model, see `pretrained.load`.
    """
    loaded = pretrained.load(weights)
    known = candidates([one for each in records.values() for one in each])
    found = {}
    for split, each in records.items():
        asked = [(one, choices(one, known)) for one in each if one.answer and one.question]
        asked = [(one, answers) for one, answers in asked if len(answers) > 1 and len(one.answer.split()) <= 3]
        if not asked:
            continue
        chosen = [asked[i] for i in np.unique(np.linspace(0, len(asked) - 1, min(most, len(asked))).astype(int))]
        prompts = [f"{one.question}\n" for one, _ in chosen]
        texts = [[f" {answer}" for answer in answers] for _, answers in chosen]
        picked = generation.choose(loaded, prompts, texts, normalize="tokens")
        right = [(one.kind, place == 0) for (one, _), (place, _) in zip(chosen, picked, strict=True)]
        found[split] = Blind.of(f"the likelihood of {weights}, the question alone", right)
    return found

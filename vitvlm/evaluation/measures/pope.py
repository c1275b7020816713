"""POPE (Li et al. 2023): whether a model says that things are in an image which are not; three parsers of its answers.

The parsers that are in use read the same answers differently, so a figure names the one that it is from.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vitvlm.evaluation.measures import vqa

YES, NO, UNKNOWN = "yes", "no", "unknown"


def first_sentence(answer: str) -> str:
    """Reads "no" if no, No or not is a word of the first sentence, and otherwise, also of nothing, "yes".

    It is the parser of POPE's authors and of LLaVA. Words are what stands between spaces, without commas: "no!" is
    none of the three.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return NO if {"no", "No", "not"} & set(words) else YES


def exact(answer: str) -> str:
    """Reads an answer that is yes or no but for case and white space around it; any other, "Yes." too, is unknown.

    It is the parser of lmms-eval.
    """
    plain = answer.lower().strip()
    return plain if plain in (YES, NO) else UNKNOWN


def one_of_both(answer: str) -> str:
    """Reads "yes" or "no" if just one of the two is among the words, and otherwise "unknown".

    It is the parser of VLMEvalKit: signs are left out by the rules of VQA.
    """
    words = vqa.without_signs(answer.lower()).split()
    if (YES in words) == (NO in words):
        return UNKNOWN
    return YES if YES in words else NO


PARSERS: Mapping[str, Callable[[str], str]] = {
    "first_sentence": first_sentence,
    "exact": exact,
    "one_of_both": one_of_both,
}

SAID = {
    "first_sentence": "no if no, No or not is a word of the first sentence, otherwise yes (POPE's authors, LLaVA)",
    "exact": "an answer other than yes or no is unknown (lmms-eval)",
    "one_of_both": "unknown unless just one of yes and no is among the words (VLMEvalKit)",
}
"""The parsers in words, for protocols."""


def scores(predicted: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """Accuracy; precision, recall and F1 of "yes"; yes_share and unknown_share of the answers.

    An unknown answer is wrong, and not "yes". Precision without a "yes" is 0, and so is recall without a true one.

    Raises ValueError for a truth that is neither yes nor no.
    """
    if strange := sorted(set(truths) - {YES, NO}):
        raise ValueError(f"the true answer is yes or no, and one is {strange[0]!r}")
    said, true = (np.array(list(each), dtype=object) for each in (predicted, truths))
    right, yes = float(np.sum((said == YES) & (true == YES))), float(np.sum(said == YES))
    precision, recall = right / max(yes, 1), right / max(float(np.sum(true == YES)), 1)
    return {
        "accuracy": float(np.mean(said == true)),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if right else 0.0,
        "yes_share": float(np.mean(said == YES)),
        "unknown_share": float(np.mean(said == UNKNOWN)),
    }

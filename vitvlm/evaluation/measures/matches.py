"""Matches of answers with true ones: equal, or close where both are numbers."""

from collections.abc import Callable, Mapping, Sequence

from vitvlm.evaluation.measures import vqa

CLOSE = 0.05


def plain(text: str) -> str:
    """The text in lower case, white space as single spaces, without a full stop at its end."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def exact(answer: str, truths: Sequence[str]) -> float:
    """1.0 if the answer is one of the truths but for case, white space and a full stop at the end, otherwise 0.0."""
    return float(plain(answer) in {plain(each) for each in truths})


def relaxed(answer: str, truths: Sequence[str]) -> float:
    """1.0 if the answer is a number within 5 % of a true one, or text equal to it but for case, otherwise 0.0.

    It is ChartQA's measure (Masry et al. 2022): "12 %" is the number 0.12, and a true 0 is compared as text.
    """
    return float(any(_close(answer.strip(), each.strip()) for each in truths))


def _close(answer: str, truth: str) -> bool:
    number, true = _number(answer), _number(truth)
    if number is not None and true:
        return abs(number - true) <= CLOSE * abs(true)
    return answer.lower() == truth.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


RULES: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "exact": exact,
    "relaxed": relaxed,
    "vqa": vqa.accuracy,
}
"""Measures of an answer by the true ones, 0 to 1."""

SAID = {
    "exact": "exact match but for case, white space and a full stop at the end",
    "relaxed": f"relaxed match: numbers within {CLOSE:.0%}, text but for case",
    "vqa": "VQA accuracy by the published rules (leave one of the people out, published normalisation)",
}
"""The rules in words, for protocols."""

"""Metrics in words and per cent: "top-1 accuracy 83.2 % (80.1 to 86.0 %)"."""

import re
from collections.abc import Mapping

from vitvlm.evaluation.base import with_intervals

# Patterns of the names of shares, in [0, 1], with their words; the first is what an evaluation is about.
SHARES = {
    r"top1": "top-1 accuracy",
    r"top1_k(\d+)": r"top-1 accuracy of \1 neighbours",
    r"accuracy": "accuracy",
    r"mAP": "mean average precision",
    r"image_to_text_r(\d+)": r"image to text, recall at \1",
    r"text_to_image_r(\d+)": r"text to image, recall at \1",
    r"reranked_(image|text)_to_(image|text)_r(\d+)": r"\1 to \2 reranked, recall at \3",
    r"top(\d+)": r"top-\1 accuracy",
    r"train_top1": "top-1 accuracy on the training split",
    r"train_accuracy": "accuracy on the training split",
    r"mean_class_accuracy": "mean accuracy of the classes",
    r"mean_type_accuracy": "mean accuracy of the types of questions",
    r"micro_f1": "micro F1",
    r"macro_f1": "macro F1",
    r"f1": "F1",
    r"(precision|recall)": r"\1",
    r"chair_i": "hallucinated objects (CHAIR_i)",
    r"chair_s": "captions with a hallucinated object (CHAIR_s)",
    r"masked_share": "masked share",
    r"chance": "chance",
}
OTHERS = {"loss": "loss", "n": "examples", "margin": "margin (nats)", "C": "C"}
NO_HEADLINE = ("chance", "masked_share")


def in_words(name: str) -> str:
    """Returns a metric's name in words: "top-1 accuracy" of "top1"."""
    for pattern, words in SHARES.items():
        if found := re.fullmatch(pattern, name):
            return found.expand(words)
    return OTHERS.get(name, name.replace("_", " "))


def is_share(name: str) -> bool:
    """Tells whether a metric is a share, shown in per cent."""
    return any(re.fullmatch(pattern, name) for pattern in SHARES)


def value_of(name: str, value: float) -> str:
    """A metric's value as it is shown: "83.2 %", "241" or "0.5132"."""
    if is_share(name):
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def interval_of(name: str, bounds: tuple[float, float] | None) -> str:
    """An interval as it is shown: "80.1 to 86.0 %"; "" for none."""
    if bounds is None:
        return ""
    low, high = bounds
    return f"{100 * low:.1f} to {100 * high:.1f} %" if is_share(name) else f"{low:.4g} to {high:.4g}"


def figures(metrics: Mapping[str, float | str]) -> list[tuple[str, str, str]]:
    """Lists (words, value, interval) of each metric that is a number, shares first; `n` is the last."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    rows = [(name, value, bounds) for name, value, bounds in with_intervals(numbers)]
    rows.sort(key=lambda row: (row[0] == "n", not is_share(row[0])))
    return [(in_words(name), value_of(name, value), interval_of(name, bounds)) for name, value, bounds in rows]


def sentence(metrics: Mapping[str, float | str]) -> str:
    """All metrics in a line: "top-1 accuracy 83.2 % (80.1 to 86.0 %), loss 0.5132, 241 examples"."""
    parts = []
    for words, value, interval in figures(metrics):
        if words == OTHERS["n"]:
            parts.append(f"{value} {words}")
        else:
            parts.append(f"{words} {value}{f' ({interval})' if interval else ''}")
    return ", ".join(parts)


def headline(metrics: Mapping[str, float | str]) -> str | None:
    """Returns the name of the metric that an evaluation is about: its first share, or else its loss or first number."""
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    names = [name for name, _, _ in with_intervals(numbers) if name != "n" and name not in NO_HEADLINE]
    shares = [name for name in names if is_share(name)]
    if "top1_k20" in shares:
        return "top1_k20"
    return next(iter([*shares, *(["loss"] if "loss" in names else []), *names]), None)

"""Class weights of a config, "balanced" or by the classes' names, as the numbers that task classify takes."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from vitvlm.core.classes import listed
from vitvlm.core.config import ConfigError, suggest
from vitvlm.data.sources import Source, check_classes
from vitvlm.objectives.classification import balanced_weights

WHERE = "config.task.class_weights"
_MOST_NAMED = 20


def resolve(given: Any, names: Sequence[str], source: Source) -> tuple[float, ...]:
    """One weight per class of a job.

    Args:
      given: "balanced" for n / (S n_c) (`balanced_weights`), or {class: weight}; a class that is not named weighs 1.
      names: the job's classes.
      source: the training data.

    Raises ConfigError for an unknown class, naming the nearest, for an invalid weight, and for "balanced" where a class
    has no image; DataError for unlabelled data.
    """
    check_classes(source, WHERE)
    if given == "balanced":
        return _balanced(names, source)
    if not isinstance(given, Mapping):
        raise ConfigError(f'{WHERE}: {given!r} is neither "balanced" nor {{class: weight}}')
    for name, weight in given.items():
        if name not in names:
            raise ConfigError(f"{WHERE}: the job has no class {name!r}; {suggest(name, names)}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise ConfigError(f"{WHERE}: the weight of {name!r} is a number of 0 or more, not {weight!r}")
    return tuple(float(given.get(name, 1.0)) for name in names)


def describe(weights: Sequence[float], names: Sequence[str]) -> str:
    """One phrase for the log: "class weights cat 0.75, dog 1.5; the other 3 classes 1"."""
    told = {name: weight for name, weight in zip(names, weights, strict=True) if weight != 1}
    shown = [f"{name} {weight:.4g}" for name, weight in list(told.items())[:_MOST_NAMED]]
    if len(told) > _MOST_NAMED:
        shown.append(f"… from {min(told.values()):.4g} to {max(told.values()):.4g}")
    rest = len(names) - len(told)
    return f"class weights {', '.join(shown)}" + (f"; the other {rest} classes 1" if rest else "")


def label_counts(source: Source) -> Int[np.ndarray, " S"]:
    """Counts the labels of each class in the data; an unreadable example has none."""
    if source.multi_label:
        counted = collections.Counter(int(label) for labels in source.label_sets for label in labels)
        return np.array([counted[label] for label in range(source.num_classes)])
    return np.bincount(source.labels[source.labels >= 0], minlength=source.num_classes)


def _balanced(names: Sequence[str], source: Source) -> tuple[float, ...]:
    known = dict(zip(source.label_names, label_counts(source).tolist(), strict=True))
    counts = [known.get(name, 0) for name in names]
    without = [name for name, count in zip(names, counts, strict=True) if not count]
    if without:
        raise ConfigError(
            f'{WHERE}: "balanced" has no weight for {listed(without, 5)}: {source.name} has no image of '
            f"{'them' if len(without) > 1 else 'it'}; give weights by name"
        )
    return tuple(balanced_weights(np.array(counts)).tolist())

"""A training's curves as one picture: losses and scores of training and test together, learning rate, and norms."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from vitvlm.evaluation import words
from vitvlm.jobs.figures import COLOURS, STYLE, plt, save_figure
from vitvlm.training import writers

NAME = "curves.png"
SMOOTHING = 20  # rows in a moving average, where there are that many
NORMS = {"grad_norm": "gradient", "update_norm": "update", "param_norm": "parameters"}
NOT_EVALUATIONS = {"", "train", "time", "data", "config"}  # what names of rows begin with besides
PANEL = (4.8, 3.5)  # inches
ACROSS = 3

Rows = Sequence[Mapping[str, writers.Value]]


class Points(NamedTuple):
    """A metric of an evaluation by step, with the bounds of its interval where it has one."""

    step: np.ndarray
    value: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def times(self, factor: float) -> "Points":
        return Points(self.step, *(None if array is None else array * factor for array in self[1:]))


def save(folder: epath.Path, title: str = "") -> epath.Path:
    """Draws `curves.png` of a workdir from its metrics.jsonl, and returns its path."""
    rows = writers.read(folder / "metrics.jsonl")
    panels = [panel for panel in (_losses, _shares, *_others(rows), _rate, _norms) if panel(None, rows)]
    across = max(1, 2 if len(panels) == 4 else min(ACROSS, len(panels)))
    down = max(1, -(-len(panels) // across))
    with plt.rc_context(STYLE):
        size = (PANEL[0] * max(across, 2), PANEL[1] * down + 0.3)
        figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
        for place, axis in enumerate(axes.ravel()):
            if place < len(panels):
                panels[place](axis, rows)
                axis.set_xlabel("step")
            else:
                axis.set_axis_off()
        figure.suptitle(title or folder.name, x=0.01, ha="left", fontsize=12)
        return save_figure(figure, folder / NAME)


def headlines(rows: Rows) -> dict[str, str]:
    """Returns, for each evaluation that the rows hold, the metric that it is about."""
    found: dict[str, dict[str, writers.Value]] = {}
    for row in rows:
        for name, value in row.items():
            group, _, metric = name.rpartition("/")
            if group not in NOT_EVALUATIONS:
                found.setdefault(group, {}).setdefault(metric, value)
    named = {group: words.headline(metrics) for group, metrics in found.items()}
    return {group: metric for group, metric in named.items() if metric is not None}


def points(rows: Rows, name: str) -> Points | None:
    """A metric in the rows that hold it as a finite number, with its interval if every one of them has it."""
    found = [row for row in rows if isinstance(row.get(name), (int, float)) and np.isfinite(row[name])]
    if not found:
        return None
    step, value = (np.array([row[each] for row in found], float) for each in ("step", name))
    if all(f"{name}_low" in row and f"{name}_high" in row for row in found):
        return Points(step, value, *(np.array([row[name + end] for row in found], float) for end in ("_low", "_high")))
    return Points(step, value)


def _losses(axis: plt.Axes | None, rows: Rows) -> bool:
    """Loss of the training and of the evaluations that have one."""
    train = points(rows, "train/loss")
    tests = {group: points(rows, f"{group}/loss") for group in headlines(rows)}
    return _together(axis, train, {name: each for name, each in tests.items() if each is not None}, "loss", 1)


def _shares(axis: plt.Axes | None, rows: Rows) -> bool:
    """Accuracy of the training, and what evaluations are about where that is a share, in per cent."""
    own = {group: metric for group, metric in headlines(rows).items() if words.is_share(metric)}
    tests = {f"{group}, {words.in_words(metric)}": points(rows, f"{group}/{metric}") for group, metric in own.items()}
    return _together(axis, points(rows, "train/accuracy"), tests, "per cent", 100)


def _others(rows: Rows) -> list:
    """A panel for each evaluation that is about neither a share nor a loss."""
    found = []
    for group, metric in headlines(rows).items():
        if metric != "loss" and not words.is_share(metric):
            name = words.in_words(metric)

            def panel(axis, rows, group=group, metric=metric, name=name) -> bool:
                return _together(axis, None, {group: points(rows, f"{group}/{metric}")}, name, 1)

            found.append(panel)
    return found


def _together(
    axis: plt.Axes | None, train: Points | None, tests: Mapping[str, Points], label: str, factor: float
) -> bool:
    """Draws a training's line and the evaluations' with their intervals as bands; tells whether there is any."""
    if axis is None:
        return train is not None or bool(tests)
    if train is not None:
        train = train.times(factor)
        smooth = len(train.value) >= 2 * SMOOTHING
        few = {"marker": "o", "markersize": 3} if len(train.value) == 1 else {}
        faint = {"alpha": 0.3} if smooth else {"label": "training"}
        axis.plot(train.step, train.value, color=COLOURS[0], linewidth=1, **faint, **few)
        if smooth:
            mean = np.convolve(train.value, np.full(SMOOTHING, 1 / SMOOTHING), mode="valid")
            label_of = f"training, mean of {SMOOTHING} rows"
            axis.plot(train.step[SMOOTHING - 1 :], mean, color=COLOURS[0], label=label_of)
    for number, (name, each) in enumerate(sorted(tests.items()), 1):
        each, colour = each.times(factor), COLOURS[number % len(COLOURS)]
        axis.plot(each.step, each.value, marker="o", markersize=3.5, color=colour, label=name)
        if each.low is not None:
            whole = len(each.step) > 1
            if whole:
                axis.fill_between(each.step, each.low, each.high, color=colour, alpha=0.15, linewidth=0)
            else:
                axis.vlines(each.step, each.low, each.high, color=colour, alpha=0.4, linewidth=4)
    axis.set(ylabel=label, title={"per cent": "scores, with 95 % intervals"}.get(label, label))
    axis.legend(fontsize=8)
    return True


def _rate(axis: plt.Axes | None, rows: Rows) -> bool:
    found = points(rows, "train/learning_rate")
    if axis is not None:
        axis.plot(found.step, found.value, color=COLOURS[0], marker="o" if len(found.step) == 1 else None)
        axis.set(ylabel="learning rate", title="learning rate")
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    return found is not None


def _norms(axis: plt.Axes | None, rows: Rows) -> bool:
    found = {label: points(rows, f"train/{name}") for name, label in NORMS.items()}
    found = {label: each for label, each in found.items() if each is not None and (each.value > 0).any()}
    if axis is not None:
        for colour, (label, each) in zip(COLOURS, found.items()):
            there = each.value > 0  # no logarithm, of the first update's in a warm-up for one
            axis.plot(each.step[there], each.value[there], color=colour, linewidth=1, label=label)
        axis.set(ylabel="norm (log scale)", title="norms of what trains", yscale="log")
        axis.minorticks_off()
        axis.legend(fontsize=8)
    return bool(found)

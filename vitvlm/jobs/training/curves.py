"""A training's curves as one picture: loss, learning rate and evaluations against the step."""

from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from vitvlm.jobs.figures import COLOURS, STYLE, plt, save_figure
from vitvlm.training import writers

# The one figure of an evaluation that is drawn, the first of these that it has, and its axis label.
HEADLINES = {
    "top1": "top-1 accuracy",
    "top1_k20": "top-1 accuracy",
    "loss": "loss",
}
SMOOTHING = 20  # rows in a moving average, where there are that many


def save(folder: epath.Path) -> epath.Path:
    """Draws `curves.png` of a workdir from its metrics.jsonl, and returns its path."""
    rows = writers.read(folder / "metrics.jsonl")
    evaluations = headlines(rows)
    labels = sorted({label for label, _ in evaluations.values()})
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2 + len(labels), figsize=(4.6 * (2 + len(labels)), 3.6), layout="constrained")
        _line(panels[0], rows, "train/loss", "training loss")
        _line(panels[1], rows, "train/learning_rate", "learning rate")
        for panel, label in zip(panels[2:], labels):
            for colour, (name, (own, points)) in zip(COLOURS, sorted(evaluations.items())):
                if own == label:
                    panel.plot(*zip(*points), marker="o", markersize=3.5, color=colour, label=name)
            panel.set(xlabel="step", ylabel=label, title="evaluation")
            panel.legend()
        return save_figure(figure, folder / "curves.png")


def headlines(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[str, list[tuple[int, float]]]]:
    """Returns, for each evaluation, the label of its headline figure and its (step, value) pairs."""
    found: dict[str, tuple[str, list[tuple[int, float]]]] = {}
    for row in rows:
        groups = {name.rpartition("/")[0] for name in row} - {"", "train", "time"}
        for group in groups:
            metric = next((metric for metric in HEADLINES if f"{group}/{metric}" in row), None)
            if metric is not None and isinstance(row[f"{group}/{metric}"], (int, float)):
                _, points = found.setdefault(group, (HEADLINES[metric], []))
                points.append((row["step"], row[f"{group}/{metric}"]))
    return found


def _line(panel: plt.Axes, rows: Sequence[Mapping[str, float]], name: str, label: str) -> None:
    points = writers.numbers(rows, name)
    steps, values = np.array([step for step, _ in points]), np.array([value for _, value in points])
    smooth = len(values) >= 2 * SMOOTHING and name == "train/loss"
    panel.plot(steps, values, color=COLOURS[0], alpha=0.3 if smooth else 1.0, linewidth=1)
    if smooth:
        mean = np.convolve(values, np.full(SMOOTHING, 1 / SMOOTHING), mode="valid")
        panel.plot(steps[SMOOTHING - 1 :], mean, color=COLOURS[0], label=f"mean of {SMOOTHING} rows")
        panel.legend()
    panel.set(xlabel="step", ylabel=label, title=label)

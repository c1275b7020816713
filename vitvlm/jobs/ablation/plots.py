"""A sweep's plots as PNG files: scores against what is varied and against FLOPs, resources, and loss curves."""

from collections.abc import Callable, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes

from vitvlm.jobs.ablation.columns import si
from vitvlm.jobs.ablation.plan import Plan
from vitvlm.jobs.ablation.rows import Row, by_line
from vitvlm.jobs.figures import COLOURS, STYLE, plt, save_figure


def write(sweep: Plan, rows: Sequence[Row], folder: epath.Path) -> list[epath.Path]:
    """Writes every plot that the rows have data for, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    done = [row for row in rows if row.status == "done"]
    written = []
    with plt.rc_context(STYLE):
        if done:
            written.append(_figure(folder / "scores.png", lambda axes: _scores(axes, sweep, done)))
            written.append(_figure(folder / "scores_by_flops.png", lambda axes: _scores_by_flops(axes, sweep, done)))
            written.append(_resources(folder / "resources.png", sweep, done))
        for stage in sweep.stages:
            if any(row.curves[stage.name] for row in rows):
                path = folder / f"loss_{stage.name}.png"
                written.append(_figure(path, lambda axes, stage=stage: _curves(axes, stage.name, rows)))
    return written


def _figure(path: epath.Path, draw: Callable[[Axes], None]) -> epath.Path:
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    draw(axes)
    return save_figure(figure, path)


def _scores(axes: Axes, sweep: Plan, rows: Sequence[Row]) -> None:
    _errorbars(axes, sweep, rows, lambda row: row.value)
    axes.set_xlabel(sweep.axis)
    axes.set_xticks(sorted({row.value for row in rows}))
    axes.set_title(sweep.title)


def _scores_by_flops(axes: Axes, sweep: Plan, rows: Sequence[Row]) -> None:
    flops = [row.costs[sweep.costs_of]["forward_flops"] for row in rows]
    _errorbars(axes, sweep, rows, lambda row: row.costs[sweep.costs_of]["forward_flops"])
    axes.set_xscale("log")
    axes.set_xlabel("forward FLOPs per image (analytic, log scale)")
    ticks, lines = sorted(set(flops)), len(by_line(rows)) > 1
    if lines:  # too many variants for a tick and a name each: the legend names their lines
        ticks = np.unique(np.geomspace(ticks[0], ticks[-1], 4))
    axes.set_xticks(ticks, [si(value, "FLOP") for value in ticks], rotation=20, fontsize=9)
    axes.minorticks_off()
    axes.set_title("Score against compute", pad=6 if lines else 26)
    if lines:
        return
    for row, x in zip(rows, flops):
        small = {"textcoords": "offset points", "fontsize": 8, "color": "#6b7280"}
        if flops.count(x) == 1:
            place = {"xy": (x, 1), "xycoords": ("data", "axes fraction"), "xytext": (0, 3), "ha": "center"}
        else:  # variants of equal cost would stand on each other above the drawing: each beside its own point
            scale = 100 if sweep.scores[0].percent else 1
            place = {"xy": (x, scale * row.scores[0].estimate), "xytext": (7, 0), "ha": "left"}
        axes.annotate(row.name, va="bottom", **place, **small)


def _errorbars(axes: Axes, sweep: Plan, rows: Sequence[Row], x: Callable[[Row], float]) -> None:
    """A line for each score; or, if the variants are of several lines, one for each of these, in the first score."""
    lines = by_line(rows)
    shown = [(score.label, place, rows) for place, score in enumerate(sweep.scores)]
    if len(lines) > 1:
        shown = [(name, 0, own) for name, own in lines.items()]
    for number, (label, place, own) in enumerate(shown):
        scale = 100 if sweep.scores[place].percent else 1
        points = sorted(((x(row), row.scores[place]) for row in own), key=lambda point: point[0])
        estimates = [scale * measured.estimate for _, measured in points]
        low = [scale * (measured.estimate - _or(measured.low, measured)) for _, measured in points]
        high = [scale * (_or(measured.high, measured) - measured.estimate) for _, measured in points]
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(
            [at for at, _ in points], estimates, yerr=[low, high], marker="o", capsize=3, color=colour, label=label
        )
    scores = {place for _, place, _ in shown}
    unit = " (%)" if all(sweep.scores[place].percent for place in scores) else ""
    axes.set_ylabel(f"{sweep.scores[0].label if len(scores) == 1 else 'score'}{unit}, 95 % bootstrap interval")
    if len(shown) > 1:
        axes.legend()


def _or(bound: float | None, measured) -> float:
    return measured.estimate if bound is None else bound


def _resources(path: epath.Path, sweep: Plan, rows: Sequence[Row]) -> epath.Path:
    """Bars: step time, and the memory of a step."""
    figure, panels = plt.subplots(1, 2, figsize=(max(9, 0.9 * len(rows)), 3.8), layout="constrained")
    costs = [row.costs[sweep.costs_of] for row in rows]
    names = [row.name for row in rows]
    for axes, key, scale, label in (
        (panels[0], "step_seconds", 1e3, "median step time (ms)"),
        (panels[1], "step_bytes", 1e-6, "planned peak memory of a step (MB)"),
    ):
        bars = axes.bar(names, [cost.get(key, 0) * scale for cost in costs], color=COLOURS[0], width=0.6)
        axes.bar_label(bars, fmt="%.3g", fontsize=8, padding=2)
        axes.set_ylabel(label)
        axes.set_xlabel("variant")
        axes.grid(axis="x", visible=False)
        if max(map(len, names)) > 8:
            plt.setp(axes.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    panels[0].set_title(f"Costs of {sweep.costs_of}")
    return save_figure(figure, path)


def _curves(axes: Axes, stage: str, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        if row.curves[stage]:
            steps, losses = zip(*row.curves[stage])
            axes.plot(steps, losses, color=COLOURS[place % len(COLOURS)], label=row.name, linewidth=1.4)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.set_title(f"Training loss: {stage}")
    many = sum(bool(row.curves[stage]) for row in rows) > len(COLOURS)
    axes.legend(ncols=2 if many else 1, fontsize=6 if many else None)

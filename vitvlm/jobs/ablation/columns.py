"""Columns of a sweep's table, and numbers as people read them."""

import dataclasses
from collections.abc import Callable, Sequence

from vitvlm.jobs.ablation.plan import Score
from vitvlm.jobs.ablation.rows import Measured


@dataclasses.dataclass(frozen=True)
class Cost:
    """A cost: a number of a variant besides its scores.

    Attributes:
      key: in the outcome, and in the CSV (in base units).
      label, unit: its heading.
      show: how people read it.
      note: what exactly it is.
      shown: whether tables for people have it too.
    """

    key: str
    label: str
    unit: str
    show: Callable[[float], str]
    note: str
    shown: bool = True


def si(value: float, unit: str) -> str:
    """Three digits and a decimal prefix: 1.23 GFLOP."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{digits(value / size)} {prefix}{unit}"
    return f"{digits(value)} {unit}"


def digits(value: float) -> str:
    """Formats a number with three or more significant digits, no exponent: 0.123, 1.23, 12.3, 123, 1,234."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) >= 1 and abs(value) < 10 else 1 if abs(value) >= 10 else 3}f}"


def seconds(value: float) -> str:
    return f"{digits(value)} s" if value >= 1 else f"{digits(value * 1e3)} ms"


COSTS = (
    Cost("tokens", "tokens", "", lambda value: f"{value:,.0f}", "patch tokens of one image"),
    Cost(
        "encoder_tokens",
        "encoder tokens",
        "",
        lambda value: f"{value:,.0f}",
        "tokens per image that the encoder sees in training: unmasked patches, CLS and registers",
    ),
    Cost("parameters", "parameters", "", lambda value: si(value, "").rstrip(), "of the whole model that is trained"),
    Cost(
        "trained_parameters",
        "of which train",
        "",
        lambda value: si(value, "").rstrip(),
        "parameters with a gradient: the others are frozen, or learn through LoRA's matrices alone",
    ),
    Cost(
        "forward_flops",
        "FLOPs / image",
        "FLOP",
        lambda value: si(value, "FLOP"),
        "training loss on one image, forward only, analytic: matrix products, 2 per multiply-add",
    ),
    Cost(
        "total_flops",
        "training FLOPs",
        "FLOP",
        lambda value: si(value, "FLOP"),
        "of the whole training, forward and backward (3 x forward), analytic",
        shown=False,
    ),
    Cost("examples", "examples", "", lambda value: f"{value:,.0f}", "that it was trained on", shown=False),
    Cost("steps", "steps", "", lambda value: f"{value:,.0f}", "of the optimizer", shown=False),
    Cost(
        "step_seconds",
        "step time",
        "s",
        seconds,
        "median over the logged rows, each the mean over log.every steps; evaluations and saves left out",
    ),
    Cost(
        "step_bytes",
        "step memory",
        "B",
        lambda value: si(value, "B"),
        "peak per device that the compiler plans for one training step: state, batch and temporaries",
    ),
    Cost(
        "process_bytes",
        "process memory",
        "B",
        lambda value: si(value, "B"),
        "peak resident memory of the variant's own process, data and compiler included",
    ),
    Cost("device_bytes", "device memory", "B", lambda value: si(value, "B"), "peak in use that the device reports"),
)


def present(costs: Sequence[dict[str, float]]) -> tuple[Cost, ...]:
    """The columns of tables for people: those for which any row has a number."""
    return tuple(cost for cost in COSTS if cost.shown and any(cost.key in row for row in costs))


def number(score: Score, value: float) -> str:
    """A score's value: "87.3" for percent, else four significant digits."""
    return f"{100 * value:.1f}" if score.percent else f"{value:.4g}"


def interval(score: Score, measured: Measured) -> str:
    """ "[86.6, 88.0]", or nothing where there is no interval."""
    if measured.low is None or measured.high is None:
        return ""
    return f"[{number(score, measured.low)}, {number(score, measured.high)}]"


def heading(score: Score) -> str:
    return f"{score.label} (%)" if score.percent else score.label


def behind(score: Score, measured: Measured) -> str:
    """The paired difference from the best, with its interval: "−1.2 [−1.9, −0.6]"."""
    if measured.behind is None:
        return ""
    scale, digits = (100, ".1f") if score.percent else (1, ".3g")
    estimate, low, high = (f"{scale * value:+{digits}}" for value in measured.behind)
    return f"{estimate} [{low}, {high}]".replace("-", "\N{MINUS SIGN}")

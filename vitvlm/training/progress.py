"""Progress of a training: a live line with a bar on a terminal, one line per report elsewhere."""

from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

Value = float | int | str

# What the live line shows, in this order, of what a row has.
SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/learning_rate": "learning rate {:.3g}",
    "train/accuracy": "accuracy {:.1%}",
    "time/images_per_second": "{:,.0f} images/s",
    "time/mfu": "MFU {:.1%}",
    "time/input_share": "waiting for data {:.0%}",
}

BAR_FROM_WIDTH = 120
"""Columns of a terminal from which there is room for a bar beside the numbers."""


def numbers(metrics: Mapping[str, Value]) -> str:
    """The numbers among the metrics, by their names."""
    return " · ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, (int, float)))


class Progress:
    """Use as a context manager; only the first process prints."""

    def __init__(
        self,
        total_steps: int,
        *,
        lines_every: int = 100,
        steps_per_epoch: float | None = None,
        describe: Callable[[Mapping[str, Value]], str] = numbers,
        console: Console | None = None,
        quiet: bool = False,
    ):
        """Makes a display that appears when it is entered.

        Args:
          total_steps: where the bar ends.
          lines_every: steps between lines if the output is not a terminal.
          steps_per_epoch: to say the epoch with the step; None for data without epochs.
          describe: puts the metrics of an evaluation into words.
          console: standard error by default.
          quiet: print nothing, as on every process but the first.
        """
        self._total_steps = total_steps
        self._lines_every = lines_every
        self._steps_per_epoch = steps_per_epoch
        self._describe = describe
        self._console = console or Console(stderr=True, highlight=False, quiet=quiet)
        self._rates: dict[str, Value] = {}
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Progress":
        if self._console.is_terminal and not self._console.quiet:
            bar = (BarColumn(bar_width=None),) if self._console.width >= BAR_FROM_WIDTH else ()
            numbers = TextColumn("{task.description}", table_column=Column(no_wrap=bool(bar)))
            self._bar = Bar(numbers, *bar, console=self._console, expand=True)
            self._task = self._bar.add_task("", total=self._total_steps)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def step(self, step: int, row: Mapping[str, Value], remaining: float | None) -> None:
        """A step's metrics, with rates when there are new ones, and the seconds left."""
        self._rates |= {name: value for name, value in row.items() if name.startswith("time/")}
        shown = {**self._rates, **row}
        parts = [text.format(shown[name]) for name, text in SHOWN.items() if name in shown]
        if remaining is not None:
            parts.append(f"ETA {duration(remaining)}")
        text = " · ".join([self._place(step), *parts])
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif step % self._lines_every == 0 or step == self._total_steps:
            self.note(text)

    def evaluation(self, step: int, row: Mapping[str, Value]) -> None:
        """An evaluation's metrics, "test/top1" and so on, and the seconds that it took: one line that stays."""
        groups: dict[str, dict[str, Value]] = {}
        for name, value in row.items():
            groups.setdefault(name.rpartition("/")[0], {})[name.rpartition("/")[2]] = value
        seconds = sum(value for value in groups.pop("time", {}).values())
        said = [f"{group}: {self._describe(metrics)}" for group, metrics in groups.items()]
        self.note(" · ".join([self._place(step), *said, f"{seconds:.1f} s"]))

    def _place(self, step: int) -> str:
        if self._steps_per_epoch is None:
            return f"step {step}/{self._total_steps}"
        epoch, epochs = (count / self._steps_per_epoch for count in (step, self._total_steps))
        return f"step {step}/{self._total_steps} · epoch {epoch:.2f}/{epochs:.3g}"

    def note(self, text: str) -> None:
        """A line that stays on the screen."""
        self._console.print(text, soft_wrap=not self._console.is_terminal, markup=False)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

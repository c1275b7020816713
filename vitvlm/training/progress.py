"""What the person at the terminal sees: a live line on a terminal, one line per report elsewhere."""

from collections.abc import Mapping

from rich.console import Console


class Progress:
    def __init__(self, total_steps: int, console: Console | None = None):
        self._total = total_steps
        self._console = console or Console(stderr=True, highlight=False)

    def report(self, step: int, row: Mapping[str, float | int | str], remaining: float | None) -> None:
        """A row of metrics, and the seconds that are left."""
        parts = [f"step {step}/{self._total}"]
        for name, value in row.items():
            parts.append(f"{name.split('/')[-1]} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
        if remaining is not None:
            parts.append(f"ETA {remaining:.0f} s")
        self._console.print("  ".join(parts), soft_wrap=True)

    def note(self, text: str) -> None:
        """A message that stays on the screen."""
        self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        pass

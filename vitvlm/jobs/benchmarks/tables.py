"""Tables of measurements: for the terminal, and as they can be pasted into a page."""

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table


def terminal(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> Table:
    """Makes a table for the terminal, one row a measurement."""
    shown = Table(*columns, title=title)
    for row in rows:
        shown.add_row(*row)
    return shown


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], note: str) -> str:
    """Returns the table in Markdown, and below it a note: what was measured, and where."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{cells}\n\n{note}\n"


def listed(facts: Mapping[str, object]) -> str:
    """Returns facts in a line: "jax 0.10, flax 0.12"."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())

"""Report of a sweep: table.csv, table.md, plots, and one page that needs nothing but a browser."""

import collections
import csv
import io
from collections.abc import Sequence
from typing import Any

from etils import epath

from vitvlm.core import pages
from vitvlm.jobs import figures
from vitvlm.jobs.ablation import columns, plots, rows
from vitvlm.jobs.ablation.plan import Plan
from vitvlm.jobs.ablation.rows import Row

PAGE, CSV, MARKDOWN, PLOTS = "index.html", "table.csv", "table.md", "plots"


def write(sweep: Plan, table: Sequence[Row], folder: epath.Path) -> None:
    """Writes the whole report into `folder`, over the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = plots.write(sweep, table, folder / PLOTS)
    (folder / CSV).write_text(as_csv(sweep, table))
    (folder / MARKDOWN).write_text(as_markdown(sweep, table, [f"{PLOTS}/{path.name}" for path in pictures]))
    (folder / PAGE).write_text(as_page(sweep, table))


def as_csv(sweep: Plan, table: Sequence[Row]) -> str:
    """Numbers in base units, every stage's costs as STAGE.COST."""
    header = ["variant", "value", "status", "failure"]
    for score in sweep.scores:
        header += [score.metric, f"{score.metric}_low", f"{score.metric}_high"]
        header += [f"{score.metric}_minus_best{end}" for end in ("", "_low", "_high")]
    costs = [(stage.name, cost.key) for stage in sweep.stages for cost in columns.COSTS]
    costs = [(stage, key) for stage, key in costs if any(key in row.costs.get(stage, {}) for row in table)]
    header += [f"{stage}.{key}" for stage, key in costs]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in table:
        cells: list[Any] = [row.name, row.value, row.status, row.failure]
        for measured in row.scores:
            behind = measured.behind if measured and measured.behind else (None, None, None)
            cells += [measured.estimate, measured.low, measured.high] if measured else [None] * 3
            cells += behind
        writer.writerow(cells + [row.costs.get(stage, {}).get(key) for stage, key in costs])
    return text.getvalue()


def as_markdown(sweep: Plan, table: Sequence[Row], pictures: Sequence[str]) -> str:
    """The table for people, with protocols, failures and links to the plots."""
    costs = columns.present([row.costs.get(sweep.costs_of, {}) for row in table])
    lines = [
        f"# {_markdown_text(sweep.title)}",
        "",
        _markdown_text(sweep.question),
        "",
        f"Budget of every variant: {budget(sweep)}.",
        "",
    ]
    header = ["variant", *map(columns.heading, sweep.scores), *(cost.label for cost in costs)]
    lines += [_markdown_row(header), _markdown_row(["---"] + ["---:"] * (len(header) - 1))]
    for row in table:
        cells = [row.name]
        for score, measured in zip(sweep.scores, row.scores):
            text = f"{columns.number(score, measured.estimate)} {columns.interval(score, measured)}" if measured else ""
            cells.append(text.strip() or row.status)
        own = row.costs.get(sweep.costs_of, {})
        lines.append(_markdown_row(cells + [cost.show(own[cost.key]) if cost.key in own else "" for cost in costs]))
    lines += ["", "In brackets: bootstrap intervals."]
    lines += [f"- **{label}**: {text}" for label, text in protocols(sweep, table)]
    lines += [f"- **{cost.label}** ({sweep.costs_of}): {cost.note}" for cost in costs]
    failures = [row for row in table if row.status == "failed"]
    if failures:
        lines += ["", "## Failed", "", *(f"- **{row.name}**: {_markdown_text(row.failure)}" for row in failures)]
    lines += ["", *(f"![{path}]({path})" for path in pictures), ""]
    return "\n".join(lines)


def as_page(sweep: Plan, table: Sequence[Row]) -> str:
    """One HTML page, its data, drawings, script and pictures inside."""
    costs = columns.present([row.costs.get(sweep.costs_of, {}) for row in table])
    leaders = [rows.best(tuple(table), place, score) for place, score in enumerate(sweep.scores)]
    return pages.render(
        "vitvlm.jobs.ablation",
        "page.html",
        sweep=sweep,
        budget=budget(sweep),
        rows=table,
        counts={status: sum(row.status == status for row in table) for status in ("done", "failed", "waiting")},
        costs=costs,
        columns=columns,
        leaders=leaders,
        protocols=protocols(sweep, table),
        differences=rows.differences(sweep),
        pictures=[
            (row.name, caption, pages.data_uri(path.read_bytes()))
            for row in table
            for caption, path in row.pictures.items()
        ],
        colours=figures.COLOURS,
        data=_data(sweep, table, costs),
    )


def budget(sweep: Plan) -> str:
    return ", ".join(f"{sweep.budget[stage.name]} of {stage.name}" for stage in sweep.stages)


def protocols(sweep: Plan, table: Sequence[Row]) -> list[tuple[str, str]]:
    """Protocols under the scores that they are of, with the names of the variants where not all have the same."""
    variants: dict[tuple[str, str], list[str]] = {}
    for place, score in enumerate(sweep.scores):
        for row in table:
            if row.scores[place] is not None and row.scores[place].protocol:
                variants.setdefault((row.scores[place].protocol, score.label), []).append(row.name)
    measured = collections.Counter(label for (_, label), names in variants.items() for _ in names)
    labels: dict[tuple[str, str], list[str]] = {}
    for (text, label), names in variants.items():
        whose = f" ({', '.join(names)})" if len(names) < measured[label] else ""
        labels.setdefault((text, whose), []).append(label)
    return [(", ".join(found) + whose, text) for (text, whose), found in labels.items()]


def _data(sweep: Plan, table: Sequence[Row], costs: Sequence[columns.Cost]) -> dict[str, Any]:
    """Returns the data of the page's charts."""
    return {
        "axis": sweep.axis,
        "scores": [{"label": columns.heading(score), "scale": 100 if score.percent else 1} for score in sweep.scores],
        "costs": [{"key": cost.key, "label": cost.label, "unit": cost.unit} for cost in costs],
        "stages": [stage.name for stage in sweep.stages],
        "rows": [
            {
                "name": row.name,
                "value": row.value,
                "line": row.line,
                "scores": [m and {"estimate": m.estimate, "low": m.low, "high": m.high} for m in row.scores],
                "costs": row.costs.get(sweep.costs_of, {}),
                "curves": row.curves,
            }
            for row in table
        ],
    }


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_markdown_text, cells)) + " |"


def _markdown_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")

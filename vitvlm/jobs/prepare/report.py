"""Report about a prepared set: report.json with every finding, one HTML page, tables for the terminal."""

import collections
import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vitvlm.core import pages
from vitvlm.data.accounting import Files
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.operations import decoding
from vitvlm.data.sources import Example
from vitvlm.jobs.prepare import class_counts
from vitvlm.jobs.prepare.problems import KINDS, WITHOUT_CAPTIONS, Decision, Finding, Findings, across_splits
from vitvlm.jobs.prepare.records import TYPES, Blind, Told, answer_type
from vitvlm.jobs.prepare.scan import Scan, images_of

JSON, PAGE = "report.json", "report.html"
SHOWN = 12  # findings of each kind on the page
THUMBNAIL = 112  # pixels of the longer side there
SIDES = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # pixels
ASPECTS = (0.25, 0.5, 0.67, 0.8, 1.25, 1.5, 2.0, 4.0)  # width / height
LENGTHS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)  # words
IMAGES = (0, 1, 2, 3, 4, 5, 9, 17)
MOST_CLASSES = 40  # by name, in the terminal
MOST = 12  # answers and kinds of questions by name


@dataclasses.dataclass(frozen=True)
class Report:
    """A scan, what was found in it, and what was dropped.

    Attributes:
      source, out: where it was read from, and where the set was written.
      drop: the kinds that were asked to be dropped.
      files: what became of the source's files, by the split that was read.
      classes: of a labelled source, how many examples each class has.
      blind: of instructions, what can be answered without the image, by split.
    """

    source: str
    out: str
    scan: Scan
    found: Findings
    decision: Decision
    drop: Sequence[str]
    files: Mapping[str, Sequence[Files]] = dataclasses.field(default_factory=dict)
    blind: Mapping[str, Sequence[Blind]] = dataclasses.field(default_factory=dict)
    classes: Sequence[class_counts.Counts] = ()

    @property
    def examples(self) -> dict[str, tuple[int, int]]:
        """Counts examples (before, after) for each split, in order of appearance."""
        before = collections.Counter(one.split for one in self.scan.seen)
        after = collections.Counter(self.scan.seen[i].split for i in self.decision.captions)
        return {split: (count, after[split]) for split, count in before.items()}

    @property
    def captions(self) -> tuple[int, int]:
        """Number of captions before, and after dropping."""
        return sum(len(one.captions) for one in self.scan.seen), sum(map(len, self.decision.captions.values()))

    @property
    def kinds(self) -> list[dict[str, Any]]:
        """A row for each kind that applies: how many were found, and what was dropped."""
        rows = []
        for kind, about in KINDS.items():
            if about.of_captions and self.scan.caption_field is None:
                continue
            if about.of_records and not self.scan.records:
                continue
            paired = any(len(finding.examples) == 2 for finding in self.found[kind])
            rows.append(
                {
                    "kind": kind,
                    "title": about.title,
                    "meaning": about.meaning,
                    "found": len(self.found[kind]),
                    "across": sum(across_splits(self.scan, finding) for finding in self.found[kind])
                    if paired
                    else None,
                    "dropped": self.decision.dropped.get(kind, 0),
                    "dropped_captions": self.decision.dropped_captions.get(kind, 0),
                }
            )
        return rows

    @property
    def histograms(self) -> dict[str, list[tuple[str, int]]]:
        """Counts readable images and all captions by bins, as (bin, count) pairs, before anything was dropped."""
        sizes = np.array([one.size for one in self.scan.seen if one.pixels], float).reshape(-1, 2)
        charts = {
            "width in pixels": bins(sizes[:, 1], SIDES),
            "height in pixels": bins(sizes[:, 0], SIDES),
            "aspect, width / height": bins(sizes[:, 1] / sizes[:, 0], ASPECTS),
        }
        if self.scan.caption_field is not None:
            words = [len(caption.split()) for one in self.scan.seen for caption in one.captions]
            charts["caption length in words"] = bins(np.array(words, float), LENGTHS)
        if records := self.told:
            for name in ("question", "answer"):
                words = [len(getattr(one, name).split()) for one in records if getattr(one, name)]
                charts[f"{name} length in words"] = bins(np.array(words, float), LENGTHS)
            images = [one.images for one in self.scan.seen if one.told is not None]
            charts["images of a record"] = bins(np.array(images, float), IMAGES)
        return charts

    @property
    def told(self) -> list[Told]:
        """The instructions of all splits."""
        return [one for each in self.scan.records.values() for one in each]

    @property
    def answers(self) -> dict[str, list[tuple[str, int]]]:
        """Counts answers by type, the most frequent ones, and questions by their first words; empty for no records."""
        records = [one for one in self.told if one.answer]
        if not records:
            return {}
        types = collections.Counter(answer_type(one.answer) for one in records)
        asked = collections.Counter(one.kind or " ".join(one.question.casefold().split()[:2]) for one in records)
        return {
            "answers by type": [(name, types[name]) for name in TYPES if types[name]],
            "most frequent answers": _most(collections.Counter(one.answer[:40] for one in records)),
            "questions by their type" if records[0].kind else "questions by their first words": _most(asked),
        }


def bins(values: np.ndarray, edges: Sequence[float]) -> list[tuple[str, int]]:
    """Counts below the first edge, from each edge to below the next, and from the last on; without empty ends."""
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1).tolist()
    labels = [f"< {edges[0]:g}", *(_label(a, b) for a, b in itertools.pairwise(edges)), f"≥ {edges[-1]:g}"]
    filled = [place for place, count in enumerate(counts) if count]
    return list(zip(labels, counts))[filled[0] : filled[-1] + 1] if filled else []


def write(report: Report, folder: Path, example: Callable[[int], Example]) -> None:
    """Writes report.json and report.html; `example` reads the one at a position of the scan."""
    (folder / JSON).write_text(json.dumps(as_json(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(as_page(report, example), encoding="utf-8")


def as_json(report: Report) -> dict[str, Any]:
    """All that was found, examples by SPLIT/ID."""
    return {
        "source": report.source,
        "caption_field": report.scan.caption_field,
        "left_out": list(report.scan.left_out),
        "drop": list(report.drop),
        "classes": class_counts.as_json(report.classes, list(report.examples)),
        "files": {split: [files.json() for files in each] for split, each in report.files.items()},
        "examples": {split: _before_after(counts) for split, counts in report.examples.items()},
        "captions": _before_after(report.captions),
        "dropped_without_captions": report.decision.dropped.get(WITHOUT_CAPTIONS, 0),
        "kinds": {
            row["kind"]: {name: value for name, value in row.items() if name not in ("kind", "title")}
            | {"findings": [_named(report, finding) for finding in report.found[row["kind"]]]}
            for row in report.kinds
        },
        "instructions": as_instructions(report),
        "histograms": {name: dict(chart) for name, chart in report.histograms.items()},
    }


def as_instructions(report: Report) -> dict[str, Any] | None:
    """All that is told of instructions; None where there are none."""
    if not report.told:
        return None
    marked = [one for one in report.scan.seen if one.told is not None and one.images]
    return {
        "records": len(report.told),
        "without_image": sum(one.told is not None and not one.images for one in report.scan.seen),
        "images_first": sum(one.told.markers == 0 for one in marked),
        "answers": {name: dict(chart) for name, chart in report.answers.items()},
        "without_the_image": {
            split: [dataclasses.asdict(each) for each in found] for split, found in report.blind.items()
        },
    }


def _most(counts: collections.Counter[str]) -> list[tuple[str, int]]:
    """The most frequent, and all others together."""
    first = counts.most_common(MOST)
    rest = counts.total() - sum(count for _, count in first)
    return [*first, *([(f"{len(counts) - len(first):,} others", rest)] if rest else [])]


def as_page(report: Report, example: Callable[[int], Example]) -> str:
    """The page, its pictures inside; of each kind SHOWN findings, pairs across splits first."""
    sections = []
    for row in report.kinds:
        first = sorted(report.found[row["kind"]], key=lambda finding: not across_splits(report.scan, finding))[:SHOWN]
        if first:
            sections.append((row, [_shown(report, finding, example) for finding in first]))
    return pages.render(
        "vitvlm.jobs.prepare",
        "page.html",
        report=report,
        files=files_lines(report),
        kinds=report.kinds,
        sections=sections,
        total=_sum(report),
        without_captions=report.decision.dropped.get(WITHOUT_CAPTIONS, 0),
        charts=_charts(report.histograms),
        instructions=as_instructions(report),
        answers=_charts(report.answers),
        json=JSON,
    )


def _charts(charts: Mapping[str, list[tuple[str, int]]]) -> list[tuple[str, list[tuple[str, int]], int]]:
    """Charts that hold anything, with their longest bar."""
    return [(name, chart, max(count for _, count in chart)) for name, chart in charts.items() if chart]


def tables(report: Report) -> list[Table]:
    """Makes the tables for the terminal: examples of each class, problems found, and examples before and after."""
    problems = Table(title=report.source, title_justify="left")
    problems.add_column("problem", no_wrap=True)
    for heading in ("found", "across splits", "dropped", "captions"):
        problems.add_column(heading, justify="right")
    for row in report.kinds:
        cells = (row["found"], row["across"], row["dropped"], row["dropped_captions"])
        problems.add_row(row["title"], *(f"{cell:,}" if cell else "-" for cell in cells))
    if without := report.decision.dropped.get(WITHOUT_CAPTIONS):
        problems.add_row("all captions dropped", "", "", f"{without:,}", "")
    lost = ", ".join(report.scan.left_out)
    caption = f"not written, as they are no texts: {lost}" if lost else None
    left = Table("examples", title=report.out, title_justify="left", caption=caption)
    for heading in ("before", "after"):
        left.add_column(heading, justify="right")
    for split, counts in [*report.examples.items(), ("together", _sum(report)), ("captions", report.captions)]:
        if split != "captions" or report.scan.caption_field is not None:
            left.add_row(split, *(f"{count:,}" for count in counts))
    return [
        *([_class_table(report)] if report.classes else []),
        problems,
        left,
        *([_blind_table(report)] if any(report.blind.values()) else []),
    ]


def _class_table(report: Report) -> Table:
    """The examples of each class, by split, and what is kept of them; of many classes the first and the last."""
    table = Table("class", title=f"{report.source}: {len(report.classes):,} classes", title_justify="left")
    for split in [*report.examples, "together", "kept"]:
        table.add_column(split, justify="right")
    rows = [
        (one.name, *(f"{before:,}" for before, _ in one.of_splits), f"{one.whole[0]:,}", f"{one.whole[1]:,}")
        for one in report.classes
    ]
    if len(rows) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        rows = [*rows[:half], (f"… {len(rows) - 2 * half:,} more, see {JSON}",), *rows[-half:]]
    for row in rows:
        table.add_row(*row)
    return table


def _blind_table(report: Report) -> Table:
    table = Table("split", "guessed by", title="answered without the image", title_justify="left")
    for heading in ("records", "right"):
        table.add_column(heading, justify="right")
    for split, found in report.blind.items():
        for each in found:
            table.add_row(split, each.way, f"{each.n:,}", f"{100 * each.share:.1f} %")
    return table


def files_lines(report: Report) -> list[str]:
    """A line for each split and place: what became of the files."""
    return [f"{split}: {files}" for split, each in report.files.items() for files in each]


def _sum(report: Report) -> tuple[int, int]:
    return len(report.scan.seen), len(report.decision.captions)


def _before_after(counts: tuple[int, int]) -> dict[str, int]:
    return {"before": counts[0], "after": counts[1]}


def _named(report: Report, finding: Finding) -> dict[str, Any]:
    named: dict[str, Any] = {"examples": [report.scan.seen[i].name for i in finding.examples]}
    return named | {name: text for name in ("caption", "note") if (text := getattr(finding, name))}


def _shown(report: Report, finding: Finding, example: Callable[[int], Example]) -> Mapping[str, Any]:
    """A finding with its pictures; None where there is none to show."""
    pictures = []
    for i in finding.examples:
        try:
            first = next(iter(images_of(example(i))), None)
            picture = None if first is None else pages.thumbnail(decoding.decode(first, 3), THUMBNAIL)
        except UnreadableImage:
            picture = None
        one = report.scan.seen[i]
        pictures.append({"name": one.name, "uri": picture, "kept": i in report.decision.captions})
    return {"pictures": pictures, "caption": finding.caption, "note": finding.note}


def _label(low: float, high: float) -> str:
    """Labels a bin of a histogram; a bin of whole numbers ends with its last number, others with their bound."""
    if isinstance(low, float) or isinstance(high, float):
        return f"{low:g} to {high:g}"
    return f"{low}" if high - low == 1 else f"{low} to {high - 1}"

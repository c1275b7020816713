"""Counts of each class, first in the report of a prepared set: by split, before and after examples were dropped."""

import io
import json

import pytest
from rich.console import Console

from tests.data import pictures
from vitvlm.jobs.prepare import class_counts, report
from vitvlm.jobs.prepare.job import prepare


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two classes with six and three images, of which one of the larger class is there twice."""
    root = tmp_path_factory.mktemp("images")
    for name, count in (("ant", 3), ("bee", 6)):
        (root / name).mkdir()
        for number in range(count):
            seed = 100 * (name == "bee") + (number if (name, number) != ("bee", 5) else 0)
            (root / name / f"{number}.png").write_bytes(pictures.encoded(pictures.pattern(48, 40, seed=seed)))
    out = tmp_path_factory.mktemp("prepared") / "out"
    return prepare(f"folder:{root}", out, read=("all",), drop=("duplicates",)), out


def test_classes_are_counted_the_most_frequent_first(prepared):
    told, out = prepared
    assert list(told.classes) == [class_counts.Counts("bee", ((6, 5),)), class_counts.Counts("ant", ((3, 3),))]
    found = json.loads((out / report.JSON).read_text())["classes"]
    assert found == {"bee": {"train": {"before": 6, "after": 5}}, "ant": {"train": {"before": 3, "after": 3}}}


def test_they_are_the_first_table_and_the_first_section(prepared):
    told, out = prepared
    first, *_ = report.tables(told)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(first)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["│", "bee", "│", "6", "│", "6", "│", "5", "│"] in lines
    page = (out / report.PAGE).read_text()
    assert 0 < page.index("Classes: 2") < page.index("Problems")


def test_many_classes_are_the_most_and_the_least_frequent(prepared):
    told, _ = prepared
    many = [class_counts.Counts(f"c{place}", ((100 - place, 1),)) for place in range(60)]
    table = report._class_table(type(told)(**{**vars(told), "classes": many}))
    assert table.row_count == report.MOST_CLASSES + 1


def test_a_source_without_classes_has_no_such_table(prepared):
    told, _ = prepared
    assert class_counts.count(told.scan.seen, set(), {}, ()) == []

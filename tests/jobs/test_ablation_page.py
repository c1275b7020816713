import functools

import pytest

from tests.jobs.fake_sweep import Trainings, sweep
from vitvlm.jobs.ablate import ablate


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    ablate(sweep(folder), folder / "work", Trainings(broken=[("patch_8", "tune")]), say=lambda line: None)
    return folder / "work" / "index.html"


@pytest.fixture
def opened(open_page, page_file):
    return functools.partial(open_page, page_file)


def names(page):
    return [text.split()[0] for text in page.locator("#results tbody th").all_inner_texts()]


def test_the_table_sorts_by_every_column(opened):
    page = opened()
    heading = page.locator("#results thead th", has_text="linear probe")
    heading.locator("button").click()
    assert names(page) == ["patch_16", "patch_8", "patch_4", "patch_2"]
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").click()
    assert names(page) == ["patch_2", "patch_4", "patch_8", "patch_16"]
    assert heading.get_attribute("aria-sort") == "descending"
    for _ in range(2):  # a row without a number stays last, whatever the direction
        page.locator("#results thead th", has_text="fine-tuned").locator("button").click()
        assert names(page)[-1] == "patch_8"
    page.locator("#results thead button", has_text="variant").click()
    assert names(page) == ["patch_2", "patch_4", "patch_8", "patch_16"]


@pytest.mark.parametrize("width", [400, 700, 1200])
def test_nothing_is_wider_than_the_window(opened, width):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in ("#compare svg", "#curves svg"):
        box = page.locator(chart).bounding_box()
        assert 280 <= box["width"] <= width


def test_charts_follow_the_controls(opened):
    page = opened()
    chart = page.locator("#compare svg")
    assert chart.locator("circle").count() == 7, "four probes and three fine-tunings"
    assert chart.locator("path").count() == 7, "each with its interval"
    page.locator("#compare-y").select_option(label="fine-tuned (%)")
    assert chart.locator("circle").count() == 3
    page.locator("#compare-y").select_option(label="step time (s)")
    assert chart.locator("circle").count() == 4 and chart.locator("path").count() == 0
    page.locator("#compare-x").select_option(label="FLOPs / image (FLOP)")
    assert page.locator("#compare-log").is_checked()
    assert "FLOPs / image (FLOP)" in chart.text_content()


def test_variants_of_several_lines(open_page, tmp_path):
    """As two connectors over image tokens: each line is drawn by itself, in the first score at first."""
    fields = sweep(tmp_path)
    variants = tuple({**variant, "line": "ab"[i % 2]} for i, variant in enumerate(fields["variants"]))
    ablate(fields | {"variants": variants}, tmp_path / "work", Trainings(), say=lambda line: None)
    page = open_page(tmp_path / "work" / "index.html")
    lines, legend = page.locator("#compare svg polyline"), page.locator("#compare-legend span")
    assert lines.count() == 2 and legend.all_inner_texts() == ["a", "b"]
    assert page.locator("#compare svg circle").count() == 4
    assert len({line.get_attribute("stroke") for line in lines.all()}) == 2
    page.locator("#compare-y").select_option(label="all scores")
    assert lines.count() == 4 and legend.all_inner_texts() == ["linear probe (%)", "fine-tuned (%)"]


def test_curves_can_be_hidden_and_stages_chosen(opened):
    page = opened()
    lines = page.locator("#curves svg polyline")
    assert lines.count() == 4
    page.locator("#legend button", has_text="patch_4").click()
    assert lines.count() == 3
    before = lines.first.get_attribute("points")
    page.locator("#stages button", has_text="tune").click()
    assert lines.first.get_attribute("points") != before
    page.locator("#curves-log").check()
    assert lines.count() == 3


def test_light_and_dark(opened):
    for scheme in ("light", "dark"):
        page = opened(scheme=scheme)
        colour = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(colour)
        assert (before == "rgb(255, 255, 255)") == (scheme == "light")
        page.locator("#theme").click()
        assert page.evaluate(colour) != before


def test_texts_are_escaped_and_pictures_are_inside(opened):
    page = opened()
    assert page.locator("h1").inner_text() == "Patch size <under> one budget"
    assert "out of <memory> | at step 3" in page.locator(".failure").inner_text()
    page.locator(".failure summary").click()
    assert "<b>line</b>" in page.locator(".failure pre").inner_text()
    assert page.locator("section img").count() == 4
    assert page.evaluate("[...document.images].every(i => i.src.startsWith('data:') && i.naturalWidth > 0)")


def test_derived_fields_are_shown_as_such(opened):
    page = opened()
    row = page.locator("tr", has_text="pretrain.grid")
    assert "follows" in row.inner_text() and row.locator("td").all_inner_texts() == ["16", "8", "4", "2"]

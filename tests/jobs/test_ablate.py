import csv
import json
import math
import shutil

import pytest
from PIL import Image

from tests.jobs import fake_sweep
from tests.jobs.fake_sweep import Trainings, sweep
from vitvlm.core.config import ConfigError
from vitvlm.jobs.ablate import ablate, all_failed
from vitvlm.jobs.ablation import columns, report, rows
from vitvlm.jobs.ablation.plan import plan
from vitvlm.training import lock
from vitvlm.training.interrupts import Interrupted
from vitvlm.training.workdir import WorkdirError

QUIET = {"say": lambda line: None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of four variants in which one fails: (its folder, its config, its rows, its trainings)."""
    folder = tmp_path_factory.mktemp("sweep")
    trainings = Trainings(broken=[("patch_8", "tune")])
    table = ablate(sweep(folder), folder / "work", trainings, **QUIET)
    return folder / "work", sweep(folder), table, trainings


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes most of a made-up sweep's time."""
    monkeypatch.setattr(report.plots, "write", lambda *_: [])


def test_patch_size_carries_what_follows_from_it(tmp_path):
    planned = plan(sweep(tmp_path), tmp_path)
    grids = {patch: planned.configs[f"patch_{patch}", "pretrain"]["grid"] for patch in (2, 4, 8, 16)}
    assert grids == {2: 16, 4: 8, 8: 4, 16: 2}
    found = {field: (values, explicit) for field, values, explicit in rows.differences(planned)}
    assert found["pretrain.grid"] == ([16, 8, 4, 2], False)
    assert found["pretrain.model.patch_size"] == ([2, 4, 8, 16], True)
    assert "tune.init_from.path" not in found, "a variant's own folder is no difference"


def test_budget_and_earlier_stages_are_filled_in(tmp_path):
    planned = plan(sweep(tmp_path), tmp_path / "work")
    config = planned.configs["patch_4", "tune"]
    assert config["total"] == "10 steps"
    assert config["init_from"]["path"] == str(tmp_path / "work" / "variants" / "patch_4" / "pretrain")


def test_a_section_can_be_taken_out(tmp_path):
    fields = sweep(tmp_path)
    stages = ({**fields["stages"][0], "overrides": {"init_from": None}}, fields["stages"][1])
    planned = plan(fields | {"stages": stages}, tmp_path)
    assert "init_from" not in planned.configs["patch_4", "pretrain"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"titel": "x"}, 'config.titel: no such field; did you mean "title"'),
        ({"budget": {"pretrain": "1 steps"}}, "config.budget.tune: missing"),
        ({"budget": {"pretrain": "1 steps", "tune": "1 steps", "tuen": "1"}}, 'did you mean "tune"'),
        (
            {"stages": ({"name": "pretrain", "base": "no.py"}, {"name": "tune", "base": "no.py"})},
            "no config file no.py",
        ),
        ({"variants": ()}, "config.variants: empty"),
        ({"variants": ({"name": "a/b", "overrides": {}},)}, "a name becomes a folder"),
        ({"variants": ({"name": "a", "overrides": {}},) * 2}, "given twice"),
        ({"scores": ({"label": "x", "metric": "test/top1"},)}, "does not begin with a stage"),
        ({"scores": ({"label": "x", "metric": "tune.a", "better": "low"},)}, 'neither "max" nor "min"'),
        ({"costs_of": "tuen"}, 'did you mean "tune"'),
    ],
)
def test_mistakes_are_named_before_anything_runs(fields, message, tmp_path):
    trainings = Trainings()
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        ablate(sweep(tmp_path) | fields, tmp_path / "work", trainings, **QUIET)
    assert not trainings.ran


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pretrain": {"total": "99 steps"}}, "overrides.pretrain.total: a variant may not change its budget"),
        ({"pretrain": {"batch_size": 1}}, "may not change its budget"),
        ({"pretrian": {}}, 'did you mean "pretrain"'),
        ({"pretrain": {"model": {"patch_size": "four"}}}, "pretrain.model.patch_size"),
    ],
)
def test_a_variant_that_cannot_be_is_a_failed_row(overrides, message, tmp_path, no_plots):
    variants = ({"name": "bad", "overrides": overrides}, {"name": "good", "overrides": {}})
    table = ablate(sweep(tmp_path, variants=variants), tmp_path / "work", Trainings(), **QUIET)
    assert [row.status for row in table] == ["failed", "done"]
    assert message in table[0].failure


def test_a_variant_may_have_a_config_file_of_its_own(tmp_path):
    """The stage's overrides, its budget and the variant's own overrides are of it too; its batch is the others'."""
    fields = sweep(tmp_path)
    other = tmp_path / "other.py"
    text = fake_sweep.BASE.replace("patch_size=4, image_size", "patch_size=2, depth=3, image_size")
    other.write_text(text.replace("config.image_size = 32", 'config.image_size = 64 if arg == "large" else 32'))
    bases = {"pretrain": f"{other}:large", "tune": str(other)}
    own = {"tune": {"model": {"patch_size": 16}}}
    stages = ({**fields["stages"][0], "overrides": {"seed": 7}}, fields["stages"][1])
    variants = ({"name": "mine", "overrides": own, "bases": bases}, {"name": "usual", "overrides": {}})
    planned = plan(fields | {"stages": stages, "variants": variants}, tmp_path / "work")
    first, second = planned.configs["mine", "pretrain"], planned.configs["mine", "tune"]
    assert (first["grid"], first["total"], first["seed"], first["model"]["depth"]) == (32, "40 steps", 7, 3)
    assert (second["grid"], second["total"], second["model"]["depth"]) == (2, "10 steps", 3)
    assert second["init_from"]["path"].endswith("variants/mine/pretrain")
    assert planned.configs["usual", "pretrain"]["grid"] == 8
    other.write_text(text.replace("batch_size = 8", "batch_size = 4"))
    for bad, message in (
        (bases, r"variants\.mine\.bases\.tune: its batch_size is 4 and that of the others 8"),
        ({"tune": "no.py"}, r"variants\.mine\.bases\.tune: no config file no\.py"),
        ({"tuen": str(other)}, 'did you mean "tune"'),
    ):
        variants = ({"name": "mine", "overrides": {}, "bases": bad}, {"name": "usual", "overrides": {}})
        failed = plan(fields | {"variants": variants}, tmp_path / "work").configs
        assert isinstance(failed["usual", "tune"], dict)
        with pytest.raises(ConfigError, match=message):
            raise failed["mine", "tune"]


def test_a_failure_is_a_row_and_the_others_go_on(finished):
    _, _, table, trainings = finished
    assert [row.status for row in table] == ["done", "done", "failed", "done"]
    assert table[2].failure == "tune: RuntimeError: out of <memory> | at step 3"
    assert table[2].scores[0] is not None and table[2].scores[1] is None
    assert len(trainings.ran) == 8


def test_finished_variants_are_not_run_again_and_failed_ones_are(finished, tmp_path, no_plots):
    folder, config, before, _ = finished
    shutil.copytree(folder, tmp_path / "work")
    again = Trainings()
    after = ablate(config, tmp_path / "work", again, **QUIET)
    assert again.ran == [("patch_8", "pretrain"), ("patch_8", "tune")]
    assert [row.status for row in after] == ["done"] * 4
    assert before[0].scores == after[0].scores


def test_an_interruption_keeps_what_is_done(tmp_path, no_plots):
    class Stopped(Trainings):
        def __call__(self, config, folder):
            if folder.parent.name == "patch_8":
                raise Interrupted("stopped")
            return super().__call__(config, folder)

    with pytest.raises(Interrupted):
        ablate(sweep(tmp_path), tmp_path / "work", Stopped(), **QUIET)
    page = (tmp_path / "work" / "index.html").read_text()
    assert "2 to come" in " ".join(page.split())
    resumed = Trainings()
    ablate(sweep(tmp_path), tmp_path / "work", resumed, **QUIET)
    assert {name for name, _ in resumed.ran} == {"patch_8", "patch_16"}


def test_a_finished_variant_with_another_config_is_an_error(tmp_path, no_plots):
    ablate(sweep(tmp_path), tmp_path / "work", Trainings(), **QUIET)
    longer = sweep(tmp_path, budget={"pretrain": "80 steps", "tune": "10 steps"})
    with pytest.raises(ConfigError, match=r"patch_2 is finished .* \(pretrain.total was '40 steps', is '80 steps'\)"):
        ablate(longer, tmp_path / "work", Trainings(), **QUIET)


def test_a_metric_that_no_stage_gives_is_said(tmp_path, no_plots):
    scores = ({"label": "x", "metric": "tune.test/top2"},)
    table = ablate(sweep(tmp_path, scores=scores), tmp_path / "work", Trainings(), **QUIET)
    assert table[0].status == "failed"
    assert "tune: gives no metric test/top2; there is: test/top1, test/top1_high, test/top1_low" in table[0].failure


def test_differences_from_the_best_are_paired(finished):
    best, *others = (row.scores[0] for row in finished[2])
    assert best.behind is None
    for other in others:
        assert other.behind.estimate == pytest.approx(other.estimate - best.estimate)
        assert other.behind.high - other.behind.low < (other.high - other.low) * 1.2
    assert others[-1].behind.high < 0


def test_csv_holds_every_number_in_base_units(finished):
    folder = finished[0]
    found = list(csv.DictReader((folder / "table.csv").open()))
    assert [row["variant"] for row in found] == ["patch_2", "patch_4", "patch_8", "patch_16"]
    assert float(found[1]["pretrain.tokens"]) == 64 and float(found[1]["pretrain.step_bytes"]) == 84e6
    assert found[2]["tune.test/top1"] == "" and found[2]["failure"].startswith("tune: RuntimeError")
    saved = json.loads((folder / "variants/patch_4/result.json").read_text())
    assert float(found[1]["tune.test/top1"]) == saved["stages"]["tune"]["metrics"]["test/top1"]


def test_markdown_is_a_table_and_links_the_plots(finished):
    folder = finished[0]
    text = (folder / "table.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1 and len(table) == 6
    assert r"out of &lt;memory> \| at step 3" in text
    for link in ("scores", "scores_by_flops", "resources", "loss_pretrain", "loss_tune"):
        picture = Image.open(folder / "plots" / f"{link}.png")
        assert f"(plots/{link}.png)" in text and min(picture.size) > 400


def test_a_protocol_names_its_scores_and_whose_it_is(tmp_path):
    planned = plan(sweep(tmp_path), tmp_path / "work")
    given = {"a": ("one", "one"), "b": ("one", "one"), "c": ("two", "one"), "d": (None, None)}
    table = [
        rows.Row(
            name,
            0.0,
            "done",
            "",
            "",
            tuple(text and rows.Measured(0.5, None, None, text) for text in texts),
            {},
            {},
            {},
        )
        for name, texts in given.items()
    ]
    assert report.protocols(planned, table) == [
        ("linear probe (a, b)", "one"),
        ("linear probe (c)", "two"),
        ("fine-tuned", "one"),
    ]
    assert report.protocols(planned, table[:2]) == [("linear probe, fine-tuned", "one")]


def test_a_sweep_in_which_all_fail_still_reports(tmp_path):
    broken = [(f"patch_{size}", "pretrain") for size in (2, 4, 8, 16)]
    table = ablate(sweep(tmp_path), tmp_path / "work", Trainings(broken), **QUIET)
    assert {row.status for row in table} == {"failed"}
    assert (tmp_path / "work" / "index.html").exists()
    assert not (tmp_path / "work" / "plots" / "scores.png").exists()


def test_all_failed_is_said_and_so_are_some(tmp_path, no_plots):
    said = []
    broken = [(f"patch_{size}", "pretrain") for size in (2, 4, 8, 16)]
    table = ablate(sweep(tmp_path), tmp_path / "work", Trainings(broken), said.append)
    assert all_failed(table)
    assert said[-1].startswith("4 of 4 variants failed, the first of them patch_2: pretrain: RuntimeError: out of")
    table = ablate(sweep(tmp_path), tmp_path / "work", Trainings(broken[:1]), said.append)
    assert not all_failed(table)
    assert said[-1].startswith("1 of 4 variants failed, the first of them patch_2: ")
    ablate(sweep(tmp_path), tmp_path / "work", Trainings(), said.append)
    assert said[-1].endswith("index.html")


@pytest.mark.parametrize("field", ["rate", "loss", "seed"])
def test_variants_of_equal_cost_have_a_full_report(field, tmp_path):
    """Rates, losses and seeds cost the same FLOPs, and may score the same: it ended in a TypeError, and stuck there."""
    variants = tuple({"name": f"{field}_{value}", "overrides": {"pretrain": {field: value}}} for value in (1, 2, 3))
    table = ablate(sweep(tmp_path, variants=variants), tmp_path / "work", Trainings(), **QUIET)
    assert [row.status for row in table] == ["done"] * 3
    assert len({row.costs["pretrain"]["forward_flops"] for row in table}) == 1
    for name in ("scores", "scores_by_flops", "resources", "loss_pretrain", "loss_tune"):
        assert Image.open(tmp_path / "work" / "plots" / f"{name}.png").width > 400
    page = (tmp_path / "work" / "index.html").read_text()
    assert all(f"{field}_{value}" in page for value in (1, 2, 3))


def test_a_report_that_cannot_be_written_does_not_stop_the_sweep(tmp_path, monkeypatch):
    def fail(*_):
        raise TypeError("no order of these")

    monkeypatch.setattr(report.plots, "write", fail)
    said, trainings = [], Trainings()
    with pytest.raises(TypeError):
        ablate(sweep(tmp_path), tmp_path / "work", trainings, said.append)
    assert len(trainings.ran) == 8, "all variants are trained, and kept"
    assert "the report could not be written, the sweep goes on: TypeError: no order of these" in said
    monkeypatch.setattr(report.plots, "write", lambda *_: [])
    again = Trainings()
    table = ablate(sweep(tmp_path), tmp_path / "work", again, **QUIET)
    assert not again.ran and [row.status for row in table] == ["done"] * 4


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1,234")],
)
def test_digits(value, text):
    assert columns.digits(value) == text


def test_prefixes():
    assert [columns.si(10**power, "B") for power in (1, 4, 8, 9, 13)] == [
        "10.0 B",
        "10.0 kB",
        "100 MB",
        "1.00 GB",
        "10.0 TB",
    ]
    assert columns.seconds(0.0421) == "42.1 ms" and columns.seconds(1.5) == "1.50 s"


def test_long_curves_are_thinned_by_means(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "train/loss": float(step)}) + "\n" for step in range(1, 1001))
    )
    curve = rows._curve(tmp_path)
    assert 200 < len(curve) <= 300 and curve[-1][0] == 1000
    assert math.isclose(curve[0][1], sum(range(1, 5)) / 4)


def test_a_folder_that_another_sweep_holds_is_refused_and_one_that_is_broken_into_stops(tmp_path, no_plots):
    with lock.hold(tmp_path / "work"), pytest.raises(WorkdirError, match="is in use by process"):
        ablate(sweep(tmp_path), tmp_path / "work", Trainings(), **QUIET)
    trainings = Trainings()

    def broken_into(config, folder):
        with lock.hold(tmp_path / "work", force=True):
            return trainings(config, folder)

    with pytest.raises(WorkdirError, match=r"its lock.* was (broken by|removed)"):
        ablate(sweep(tmp_path), tmp_path / "work", broken_into, **QUIET)
    assert {name for name, _ in trainings.ran} == {"patch_2"}, "the next variant is not begun"

"""Every reader of a workdir's own files goes on when they are gone, empty, cut, garbage or of another type."""

import json
import pathlib

import pytest
from etils import epath
from PIL import Image

from tests.jobs import fake_sweep
from vitvlm.core import own_files
from vitvlm.evaluation import Result
from vitvlm.jobs import ablate
from vitvlm.jobs.ablation import report, stage
from vitvlm.jobs.evaluation import evaluate, weights
from vitvlm.jobs.training import report as training_report
from vitvlm.training.workdir import WorkdirError

DAMAGES = {
    "gone": None,
    "empty": b"",
    "garbage": b"\x00\xff\xfe" * 50,
    "another type": b"[1, 2, 3]\n",
    "other fields": b'{"step": 1}\n',
    "cut": ...,
}
damages = pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)


def damage(path: pathlib.Path, content) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is ... else content)


@damages
def test_a_finished_training_draws_what_is_left(tmp_path, content, caplog):
    rows = [{"step": step, "train/loss": 1 / step, "train/learning_rate": 0.1} for step in range(1, 9)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 8, "test/top1": 0.5}]))
    damage(path, content)
    training_report.draw_curves(epath.Path(tmp_path))
    assert Image.open(tmp_path / "curves.png").width > 600
    said = {b"": 0, b'{"step": 1}\n': 0}.get(content, 1)
    assert len(caplog.messages) == said and all(str(path) in line for line in caplog.messages)


def test_curves_that_cannot_be_drawn_are_no_reason_to_fail(tmp_path, caplog):
    (tmp_path / "curves.png").mkdir()
    training_report.draw_curves(epath.Path(tmp_path))
    assert "curves.png could not be drawn" in caplog.text


@damages
def test_the_results_of_evaluations_are_put_together_again(tmp_path, content, caplog):
    folder = epath.Path(tmp_path)
    for name in ("knn", "probe"):
        row = evaluate.Row(name, 3, Result({"top1": 0.5}, protocol=f"protocol of {name}"))
        evaluate._write(folder / "results.json", [row])
        (folder / name).mkdir()
        own_files.write(folder / name / "result.json", {"protocol": f"protocol of {name}", "metrics": {"top1": 0.5}})
    before = json.loads((tmp_path / "results.json").read_text())
    assert before.keys() == {"knn", "probe"}
    damage(tmp_path / "results.json", content)
    damage(tmp_path / "probe" / "result.json", content)
    evaluate._write(folder / "results.json", [evaluate.Row("new", 3, Result({"top1": 0.25}, protocol="p"))])
    after = json.loads((tmp_path / "results.json").read_text())
    assert after["new"] == {"protocol": "p", "metrics": {"top1": 0.25}}
    if content is not None:
        assert after["knn"] == before["knn"] and after.keys() == {"knn", "new"}
        assert (tmp_path / "results.json.damaged").exists()
        assert f"{tmp_path / 'results.json'}: " in caplog.text


@damages
def test_a_sweep_goes_on_over_damaged_results_of_its_variants(tmp_path, content, monkeypatch):
    monkeypatch.setattr(report.plots, "write", lambda *_: [])  # drawing takes most of a made-up sweep's time
    sweep = fake_sweep.sweep(tmp_path / "config")
    first = fake_sweep.Trainings()
    wanted = ablate.ablate(sweep, tmp_path / "out", first, say=lambda line: None)
    assert [row.status for row in wanted] == ["done"] * 4
    variants = tmp_path / "out" / "variants"
    damage(variants / "patch_2" / "result.json", content)
    for path in [*variants.glob("patch_4/*/metrics.jsonl"), *variants.glob("patch_4/*/evaluations/*/*/*")]:
        damage(path, content)
    again = fake_sweep.Trainings()
    rows = ablate.ablate(sweep, tmp_path / "out", again, say=lambda line: None)
    assert [row.status for row in rows] == ["done"] * 4
    assert [row.scores[0].estimate for row in rows] == [row.scores[0].estimate for row in wanted]
    assert {name for name, _ in again.ran} == {"patch_2"}, "the only one to run again"
    assert json.loads((variants / "patch_2" / "result.json").read_text())["stages"]


@damages
def test_a_stage_that_leaves_a_damaged_outcome_is_a_failed_row(tmp_path, content, monkeypatch):
    def ends(command):
        folder = pathlib.Path(command[-1])
        own_files.write(folder / stage.OUTCOME, {"metrics": {}, "facts": {}, "measured": {}})
        damage(folder / stage.OUTCOME, content)
        return 0, False

    monkeypatch.setattr(stage, "_run_child", ends)
    with pytest.raises(stage.StageFailed, match="gone or damaged: run the sweep again"):
        stage.run_apart({}, epath.Path(tmp_path / "a"))


@damages
def test_evaluations_whose_weights_nobody_knows_any_more_are_set_aside(tmp_path, content, caplog):
    folder = epath.Path(tmp_path)
    weights._claim(folder, "first", {})
    with pytest.raises(WorkdirError, match="holds evaluations of first"):
        weights._claim(folder, "second", {})
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "old").touch()
    damage(tmp_path / "weights.json", content)
    weights._claim(folder, "second", {})
    assert json.loads((tmp_path / "weights.json").read_text()) == {"path": "second"}
    if content is not None:
        assert (tmp_path / "evaluations.damaged" / "old").exists() and not (tmp_path / "evaluations").exists()
        assert "the record of whose evaluations these are is damaged" in caplog.text

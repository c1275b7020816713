"""Output of a training for people: lines in words, curves, a page, and where to look at its end."""

import os
import re
import shutil
import signal

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tests.data import pictures
from tests.jobs import golden
from vitvlm.evaluation import words
from vitvlm.jobs.training import curves, page, report, train
from vitvlm.training import writers
from vitvlm.training.interrupts import Interrupted
from vitvlm.training.progress import Progress


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    pictures.folder(root, {"cat": 20, "dog": 20}, size=(24, 24))
    damaged = sorted((root / "cat").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    found = golden.load("configs/vit.py", f"debug,source=folder:{root}")
    found.data.train.split, found.data.eval.split = "train", "test"
    found.data.max_unreadable_fraction = 0.5
    found.total, found.evals.test.every = "12 steps", "4 steps"
    return found


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A workdir at its end, and what its training said."""
    folder = tmp_path_factory.mktemp("finished") / "w"
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "note", lambda self, text: lines.append(text))
        train.train(config, folder)
    return folder, lines


def test_lines_name_epoch_and_rate_and_evaluations_are_in_words(finished):
    _, lines = finished
    said = "\n".join(lines)
    assert "compiling the first step" in said
    assert re.search(r"^step 4/12 · epoch 1\.00/3 · loss \d\.\d+ · learning rate \S+ · accuracy", said, re.M)
    share = r"\d+\.\d %"
    evaluated = (
        rf"^step 4/12 · epoch 1\.00/3 · test: top-1 accuracy {share} \(\d+\.\d to {share}\), .*, \d examples · \d"
    )
    assert re.search(evaluated, said, re.M)


def test_the_end_names_scores_page_and_files(finished, config):
    folder, lines = finished
    end = "\n".join(lines[lines.index("finished: all 12 steps of config.total='12 steps'") :])
    assert re.search(r"^test: top-1 accuracy \d", end, re.M)
    assert f"look at {folder / 'index.html'}, {folder / 'curves.png'}, " in end
    assert str(folder / "evaluations" / "00000012" / "test" / "page.html") in end


def test_a_finished_job_says_so_and_where_to_look(finished, config, capsys):
    folder, _ = finished
    train.train(config, folder)
    said = " ".join(capsys.readouterr().err.split())
    assert "finished before: all 12 steps" in said and "test: top-1 accuracy" in said
    assert str(folder / "index.html") in said and "to train longer, give a longer --config.total" in said
    assert "compiling" not in said


def test_an_unreadable_file_is_counted_once(finished):
    """In three epochs it was met three times, if it is in the training split at all."""
    _, lines = finished
    told = [line for line in lines if "could not be read" in line]
    named = [line for line in lines if line.startswith("cannot be read")]
    assert len(told) == len(named) <= 1
    for line in told:
        assert line.startswith("1 image could not be read, met 3 times in 96: ")


def test_the_page_gathers_all_that_lies_there(finished, open_page):
    folder, _ = finished
    metrics = writers.read(folder / "metrics.jsonl")[-1]
    for width, scheme in ((1200, "light"), (390, "dark")):
        shown = open_page(folder / "index.html", width, scheme)
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.locator("h1").inner_text().startswith("w: classify with vit on folder:")
        text = shown.locator("body").inner_text()
        assert "Finished: all 12 steps are done." in text and f"{100 * metrics['test/top1']:.1f} %" in text
        assert [row.inner_text().split()[0] for row in shown.locator("section:nth-of-type(2) tbody tr").all()] == [
            "4",
            "8",
            "12",
        ]
        sizes = shown.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(sizes) == 2 and min(sizes) > 300
        for link in shown.locator("a").all():
            assert (folder / link.get_attribute("href")).exists()
        shown.locator("summary").click()
        assert '"weight_decay": 0.05' in shown.locator("pre").inner_text()


def test_an_interrupted_training_leaves_curves_and_page(config, tmp_path, monkeypatch):
    step = Progress.step

    def stopped(self, number, *rest):
        step(self, number, *rest)
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "step", stopped)
    with pytest.raises(Interrupted):
        train.train(config, tmp_path / "w")
    assert Image.open(tmp_path / "w" / "curves.png").width > 800
    text = (tmp_path / "w" / "index.html").read_text()
    assert "Stopped at step 3 of 12" in text and "None has been run yet." in text
    assert "batch.png" in text


def test_curves_hold_intervals_and_norms(finished):
    rows = writers.read(finished[0] / "metrics.jsonl")
    assert curves.headlines(rows) == {"test": "top1"}
    found = curves.points(rows, "test/top1")
    np.testing.assert_array_equal(found.step, [4, 8, 12])
    assert (found.low <= found.value).all() and (found.value <= found.high).all()
    assert all(curves.points(rows, f"train/{name}") is not None for name in curves.NORMS)


def test_metrics_in_words():
    metrics = {"n": 241, "loss": 0.51318, "top1": 0.8324, "top1_low": 0.801, "top1_high": 0.86, "top5": 1.0}
    assert words.sentence(metrics) == (
        "top-1 accuracy 83.2 % (80.1 to 86.0 %), top-5 accuracy 100.0 %, loss 0.5132, 241 examples"
    )
    assert words.in_words("image_to_text_r5") == "image to text, recall at 5"
    assert words.in_words("mean_norm") == "mean norm"
    assert words.headline({"C": 1.0, "n": 2}) == "C" and words.headline({"loss": 1, "masked_share": 0.75}) == "loss"
    assert words.headline({"top1_k10": 0.1, "top1_k20": 0.2, "n": 3}) == "top1_k20"
    assert words.headline({"n": 3}) is None


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "train/loss": 2.0, "train/learning_rate": 0.0, "train/grad_norm": 0.0}],
        [{"step": 2, "reconstruction/loss": 0.5, "reconstruction/loss_low": 0.4, "reconstruction/loss_high": 0.6}],
        [{"step": n, "train/loss": 1 / n, "a/gap_other": n, "b/top1": 0.5, "b/n": 3} for n in range(1, 60)],
        [{"step": 1, "train/loss": float("nan"), "data/changed": "words"}],
    ],
)
def test_curves_of_any_rows_are_drawn(rows, tmp_path):
    writer = writers.JsonlWriter(tmp_path / "metrics.jsonl")
    for row in rows:
        writer.write(row["step"], {name: value for name, value in row.items() if name != "step"})
    assert curves.save(epath.Path(tmp_path)).exists()


def test_a_page_without_anything_and_with_damaged_results(finished, tmp_path, caplog):
    folder = shutil.copytree(finished[0], tmp_path / "w")
    (folder / "evaluations" / "00000012" / "test" / "result.json").write_text('{"metrics": ')
    assert [result.step for result in page.newest(epath.Path(folder))] == [8]
    page.write(epath.Path(folder), "a <title>", "state", [("a", "b")], {})
    assert "a &lt;title&gt;" in (folder / "index.html").read_text()
    (tmp_path / "empty").mkdir()
    report.draw(None, epath.Path(tmp_path / "empty"))
    assert list((tmp_path / "empty").iterdir()) == []

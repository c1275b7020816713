"""Files of an evaluation, which only the first process writes."""

import json

import jax
import pytest
from etils import epath

from vitvlm.evaluation import base
from vitvlm.jobs.evaluation.evaluations import Evaluation, Section


class Counts:
    """An evaluator that writes a file."""

    def run(self, predict, variables, folder):
        (folder / "examples.npz").write_bytes(b"0")
        return base.Result({"n": 3.0}, "three of them")


@pytest.mark.parametrize("process, files", [(0, ["examples.npz", "result.json"]), (1, [])])
def test_of_several_processes_the_first_leaves_files(tmp_path, monkeypatch, process, files):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    folder = epath.Path(tmp_path) / "new" / "count"
    result = Evaluation("count", Section(type="count"), Counts(), None).run(None, {}, folder)
    assert result.metrics == {"n": 3.0}
    assert (sorted(path.name for path in folder.iterdir()) if folder.exists() else []) == files
    if files:
        assert json.loads((folder / "result.json").read_text())["protocol"] == "three of them"

"""The benchmark of generation at toy size: what it times, and what it says of a peer that is not there."""

import numpy as np
import pytest

from tests.parity import ggufs
from vitvlm.core.config import ConfigError
from vitvlm.jobs.benchmarks import generation


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return ggufs.write(tmp_path_factory.mktemp("benchmark") / "model.gguf", "llama", ggufs.build("llama"))


def test_systems_in_turn(weights, monkeypatch):
    calls = []
    timed = generation._timed

    def noted(write, prompts, count):
        calls.append((len(prompts), len(prompts[0]), count))
        return timed(write, prompts, count)

    monkeypatch.setattr(generation, "_timed", noted)
    report = generation.measure(weights, ["float32", "transformers"], [1, 2], prompt=5, tokens=3, rounds=2)
    assert calls == [(B, 5, count) for _ in range(3) for B in (1, 1, 2, 2) for count in (1, 4)]
    assert [(each.system, each.batch_size, len(each.first), len(each.others)) for each in report.measured] == [
        ("float32", 1, 2, 2),
        ("transformers", 1, 2, 2),
        ("float32", 2, 2, 2),
        ("transformers", 2, 2, 2),
    ]
    table = generation.table(report)
    assert table.row_count == 4 and "model.gguf: 3 tokens after prompts of 5" in table.title
    assert generation.as_json(report)["prompt"] == 5


def test_rates(weights):
    measured = tuple(
        generation.Measured(name, 2, (0.5, 0.7), others)
        for name, others in (("int8", (1.0, 2.0)), ("transformers", (3.0, 3.0)))
    )
    report = generation.Report({}, "x", 4, 10, measured)
    cells = [list(column.cells) for column in generation.table(report).columns]
    assert cells[2] == ["15.0 [12.5, 17.5]", "6.7 [6.7, 6.7]"] and cells[3][0] == "600 [550, 650]"
    assert cells[4] == [f"{np.median([3.0, 1.5]):.2f}", "-"]


def test_systems_that_are_not_there(weights, monkeypatch):
    with pytest.raises(ConfigError, match=r"system 'lama\.cpp'; did you mean .llama\.cpp."):
        generation.measure(weights, ["lama.cpp"], [1], 4, 2, 1)
    monkeypatch.setattr(generation.sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match=r"the peer llama\.cpp did not start: pip install xllamacpp"):
        generation.measure(weights, ["llama.cpp"], [1], 4, 2, 1)

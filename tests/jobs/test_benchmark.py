"""The benchmark job at toy size: what it writes, and what it says when it cannot run."""

import json
import os

import numpy as np
import pytest
import torch

from vitvlm.core.config import ConfigError
from vitvlm.jobs.benchmarks import awake, peers, quartiles, step_time

TINY = {"width": 24, "depth": 1, "heads": 2, "mlp_width": 32, "patch_size": 16}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_each_round_is_measured_and_written(tmp_path, threads):
    cases = [step_time.Case("ViT-tiny", "vit", TINY, 32, 3), step_time.Case("MAE-tiny", "mae", TINY, 32, 3)]
    report = step_time.run(cases, rounds=3, peer=True, scan=False, workdir=str(tmp_path / "new"))
    for one in report.measured:
        assert len(one.seconds) == len(one.peer_seconds) == 3
        assert min(one.seconds + one.peer_seconds) > 0 and one.compile_seconds > 0 and one.temporary_bytes > 0
    written = json.loads((tmp_path / "new" / "benchmark.json").read_text())
    assert [case["case"]["name"] for case in written["cases"]] == ["ViT-tiny", "MAE-tiny"]
    first = written["cases"][0]
    ratios = np.divide(first["seconds"], first["peer_seconds"])
    np.testing.assert_allclose(first["ratio"], np.median(ratios))
    assert torch.__version__.startswith(written["environment"]["torch"])
    assert [column.header for column in step_time.table(report).columns] == ["model", "ViT-tiny", "MAE-tiny"]
    text = (tmp_path / "new" / "benchmark.md").read_text()
    assert "| ViT-tiny | 3 x 32 px |" in text and f"threads {step_time.threads()}" in text and "loop" in text


def test_ours_alone_needs_no_pytorch(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "require", lambda threads: pytest.fail("the peers were asked for"))
    case = step_time.Case("ViT-tiny", "vit", TINY, 32, 3)
    report = step_time.run([case], rounds=1, peer=False, scan=True, workdir=str(tmp_path), keep_awake=True)
    (measured,) = report.measured
    assert report.environment["cores"] == "kept awake"
    assert measured.peer_seconds == () and measured.ratios == ()
    assert "| - | - |" in (tmp_path / "benchmark.md").read_text()


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    real = peers.importlib.import_module

    def missing(name, *args):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(peers.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r'transformers is not installed: pip install "vitvlm\[test\]".*--nopeers'):
        peers.require(1)


@pytest.mark.parametrize("name", ["vit_x16", "vit-s16", "swin_s16", "vit_s"])
def test_what_names_no_model_is_an_error(name):
    with pytest.raises(ConfigError, match=rf"--models: '{name}' is not family_sizepatch"):
        step_time.parse_case(name, 224, 8)


def test_a_name_gives_family_sizes_and_patch():
    case = step_time.parse_case("mae_b16", 224, 8)
    assert (case.name, case.family) == ("MAE-B/16", "mae")
    assert case.sizes == {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072, "patch_size": 16}


def test_median_and_quartiles_are_shown():
    assert quartiles.shown([1, 2, 3, 4, 5], 1) == "3.0 [2.0, 4.0]"


def test_cores_are_kept_awake_by_what_gives_way_and_ends():
    with awake.cores_awake(2) as loops:
        assert [loop.poll() for loop in loops] == [None, None]
        assert [os.sched_getscheduler(loop.pid) for loop in loops] == [os.SCHED_IDLE] * 2
    assert all(loop.poll() is not None for loop in loops)

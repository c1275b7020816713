"""A short run of scripts/fuzz.py's campaign for each parser, and its harness, which must see what goes wrong."""

import json
import pathlib
import platform
import sys
import time

import pytest

from vitvlm.core.config import ConfigError
from vitvlm.jobs.fuzzing import campaign, parsers

CORPUS = pathlib.Path(__file__).parent / "corpus"
EXECUTIONS = 250
COUNTED = ("tar", "webdataset")  # damage is counted there, sample by sample, and raises nothing
MOST_SEED = 10_000  # bytes of a file of the corpus


@pytest.mark.parametrize("name", parsers.PARSERS)
def test_damaged_bytes_end_in_the_documented_error(name, tmp_path):
    report = campaign.run(name, EXECUTIONS, CORPUS, tmp_path, "mutations", seed=1)
    assert report.executions == EXECUTIONS and not report.findings, report.line()
    assert report.failed < EXECUTIONS and (report.failed > 0 or name in COUNTED)


def test_the_corpus_is_small_and_of_each_parser():
    assert {path.name for path in CORPUS.iterdir()} == set(parsers.PARSERS)
    sizes = {str(path): path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()}
    assert len(sizes) < 100 and not {name: size for name, size in sizes.items() if size > MOST_SEED}


def planted(content, folder):
    """A parser with three faults, which hide behind bytes that a change of the seed may put in."""
    (folder / "file").write_bytes(content)
    if b"key" in content:
        raise KeyError("key")
    if b"slow" in content:
        time.sleep(0.2)
    if content.startswith(b"ok"):
        raise ValueError("documented")


@pytest.fixture
def parser(monkeypatch, tmp_path):
    words = (b"key", b"slow")
    known = {**parsers.PARSERS, "planted": parsers.Parser(planted, (ValueError,), words)}
    monkeypatch.setattr(parsers, "PARSERS", known)
    monkeypatch.setattr(campaign, "SLOW", 0.1)
    (tmp_path / "corpus" / "planted").mkdir(parents=True)
    (tmp_path / "corpus" / "planted" / "seed").write_bytes(b"ok, this is read")
    return tmp_path


def test_planted_faults_are_found_and_their_bytes_kept(parser):
    report = campaign.run("planted", 60, parser / "corpus", parser / "out", "mutations")
    kinds = {what.partition(" ")[0] for what in report.findings}
    assert kinds == {"KeyError", "took"} and report.failed > 0
    for what, path in report.findings.items():
        assert (b"key" if what.startswith("KeyError") else b"slow") in pathlib.Path(path).read_bytes()
    assert "2 findings; FOUND: " in report.line()
    assert json.loads((parser / "out" / campaign.REPORT).read_text())["executions"] == 60
    assert sorted(path.is_file() for path in (parser / "out").iterdir()) == [True] * 3  # no folders are left


def test_the_same_seed_makes_the_same_inputs(parser):
    runs = [campaign.run("planted", 30, parser / "corpus", parser / name, "mutations", seed=3) for name in "ab"]
    assert [{what: pathlib.Path(path).name for what, path in run.findings.items()} for run in runs] == [
        {what: pathlib.Path(path).name for what, path in runs[0].findings.items()}
    ] * 2


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="no parser 'tars'; did you mean \"tar\""):
        campaign.run("tars", 1, CORPUS, tmp_path)
    with pytest.raises(ConfigError, match="no engine 'magic'"):
        campaign.run("tar", 1, CORPUS, tmp_path, "magic")
    with pytest.raises(ConfigError, match="holds no files"):
        campaign.run("tar", 1, tmp_path, tmp_path)


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="atheris is for Linux on x86-64")
def test_atheris_follows_a_parser(tmp_path):
    report = campaign.run("durations", 600, CORPUS, tmp_path / "out", "atheris")
    assert report.engine == "atheris" and report.executions >= 600 and not report.findings

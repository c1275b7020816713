"""A tokenizer by the command, from a data source and from a file of captions."""

import subprocess
import sys
from pathlib import Path

import pytest

from vitvlm.core.config import ConfigError
from vitvlm.data import tokenizers
from vitvlm.data.errors import DataError
from vitvlm.jobs.train_tokenizer import captions, train_tokenizer

ROOT = Path(__file__).parents[2]


def test_the_command_writes_a_tokenizer_of_a_source(tmp_path):
    target = tmp_path / "emoji.json"
    command = [sys.executable, "scripts/train_tokenizer.py", "--source=emoji", "--fields=name", "--vocab_size=500"]
    command += [f"--target={target}", "--length=12", "--lower_case"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"500 tokens written to {target}; open it as hf:{target}"
    opened = tokenizers.open(f"hf:{target}")
    assert opened.decode(opened.encode(["Cat FACE"]).ids) == ["cat face"]


def test_captions_of_a_file_are_its_lines(tmp_path):
    (tmp_path / "captions.txt").write_text("a cat\n\nzwei Hunde, ネコ\n", encoding="utf-8")
    assert list(captions(str(tmp_path / "captions.txt"))) == ["a cat", "", "zwei Hunde, ネコ"]
    size = train_tokenizer(str(tmp_path / "captions.txt"), str(tmp_path / "t.json"), 300)
    assert 259 <= size < 300


def test_mistakes_say_what_to_do(tmp_path):
    (tmp_path / "captions.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match='--fields=nam: no such text in emoji train; did you mean "name"'):
        next(captions("emoji", ["nam"]))
    with pytest.raises(ConfigError, match=r"--fields=: no such text in emoji train; there is: .*name"):
        next(captions("emoji"))
    with pytest.raises(ConfigError, match="leave it out"):
        next(captions(str(tmp_path / "captions.txt"), ["name"]))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        list(captions(str(tmp_path / "captions.txt")))

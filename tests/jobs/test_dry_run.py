"""A dry run: counts, parameters, memory and time of a training that is not made, and nothing written."""

import re

import numpy as np
import pytest

from tests.data import pictures
from tests.jobs import golden
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import count_values
from vitvlm.jobs.training import dry_run
from vitvlm.jobs.training.setup import setup


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    pictures.folder(root, {"cat": 20, "dog": 10}, size=(24, 24))
    found = golden.load("configs/vit.py", f"debug,source=folder:{root}")
    found.data.train.split, found.data.eval.split = "train", "test"
    found.optimizer.freeze = (("patches/.*", True), (".*", False))
    return found


def test_it_says_what_the_training_would_be(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    dry_run.run(config, lines.append)
    said = "\n".join(lines)
    assert re.search(r"^  cat +16 +66\.7%$", said, re.M) and re.search(r"^  dog +8 +33\.3%$", said, re.M)
    assert re.search(r"^  cat +4 +66\.7%$", said, re.M)  # of the test
    job = setup(config)
    whole, trained = job.model.parameter_count, count_values(job.training.state_shapes.params)
    arrays = len(job.model.roles())
    assert re.search(rf"^  all +{arrays} +{whole:,} +{trained:,}$", said, re.M) and trained < whole
    assert re.search(rf"^  patches +2 +{whole - trained:,} +0$", said, re.M)
    assert "Training: 4 steps of 8 examples, 1.33 epochs" in said
    assert re.search(r"memory of each device: \d+\.\d MiB: state \d", said) and re.search(r"compiling \d", said)
    assert re.search(r"estimate: 0:0\d for 4 steps at [\d,]+ examples/s", said)
    assert list(tmp_path.iterdir()) == []


def test_the_memory_is_that_of_the_arrays(config):
    """State and batch are what they are on paper; of Adam the state is three times what trains, and what is frozen."""
    job = setup(config)
    found = dry_run.cost(job)
    trained = count_values(job.training.state_shapes.params)
    state = 4 * (3 * trained + count_values(job.training.state_shapes.frozen))
    assert abs(found.state - state) < 1024  # the key and the step; and what the program does not read is no argument
    assert found.batch >= 8 * 32 * 32 * 3 * 4 and found.temporary > 0
    assert found.step_seconds > 0 and found.batch_seconds > 0 and found.compile_seconds > 0


def test_many_classes_are_the_most_and_the_least_frequent():
    names = tuple(f"c{place}" for place in range(100))
    labels = np.repeat(np.arange(100), np.arange(100) + 1)

    class Source:
        labelled, multi_label, num_classes, label_names = True, False, 100, names

    Source.labels = labels
    rows = dry_run.class_counts(Source)
    assert len(rows) == 41 and rows[0] == ("c99", "100", "2.0%") and rows[-1] == ("c0", "1", "0.0%")
    assert rows[20][0] == "… 60 more"


def test_what_is_wrong_is_said_as_by_the_training(config):
    wrong = config.copy_and_resolve_references()
    wrong.checkpoint.best = "tset/top1"
    with pytest.raises(ConfigError, match=r"config\.checkpoint\.best"):
        dry_run.run(wrong, print)
    with pytest.raises(ConfigError, match=r"config\.evals\.test: 3 is no section; give at least its type"):
        dry_run.run({**config.to_dict(), "evals": {"test": 3}}, print)

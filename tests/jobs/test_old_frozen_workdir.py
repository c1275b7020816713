"""A workdir with frozen parameters that an earlier version wrote goes on: exactly from where it was, to the same end.

tests/jobs/old_workdirs/frozen.tar.xz is one of commit c54b755: eight steps of a ViT's training with accumulated
gradients and averaged parameters, stopped at the fourth; `ended.npz` is the state that it came to there. In that
version frozen parameters had averages, and lay in every checkpoint.
"""

import json
import pathlib
import shutil
import tarfile

import jax
import numpy as np
import pytest

from vitvlm import pretrained
from vitvlm.core.paths import flatten
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import load_state, setup
from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.workdir import read_config
from vitvlm.training.writers import read

ARCHIVE = pathlib.Path(__file__).parent / "old_workdirs" / "frozen.tar.xz"
AVERAGED = "ema/"
NOW = {"params/": ("params/", "frozen/"), "opt_state/inner_states/trainable/inner_state/": ("opt_state/",)}


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "frozen"


def today(path: str, names) -> str | None:
    """Returns what an array of that version is called now; None for the average of a frozen parameter."""
    for before, now in NOW.items():
        if path.startswith(before):
            return next(each + path.removeprefix(before) for each in now if each + path.removeprefix(before) in names)
    if path.startswith("ema/") and path not in names:
        assert f"frozen/{path.removeprefix('ema/')}" in names
        return None
    return path


def words(state) -> dict[str, np.ndarray]:
    """The arrays of a state by path, its key as words."""
    return {path: np.asarray(leaf) for path, leaf in flatten(state.replace(rng=jax.random.key_data(state.rng))).items()}


def test_its_checkpoint_loads_exactly(older):
    job = setup(read_config(older))
    found = words(load_state(job.training, older))
    with Checkpoints(older / "checkpoints", read_only=True) as checkpoints:
        raw = flatten(checkpoints.open(checkpoints.latest_step()).state)
    assert {name for path in raw if (name := today(path, found))} == found.keys()
    for path, leaf in raw.items():
        if name := today(path, found):
            np.testing.assert_array_equal(found[name], leaf, err_msg=path)
    loaded = flatten(pretrained.load(older).variables["params"])
    for path, leaf in loaded.items():
        np.testing.assert_array_equal(leaf, raw[f"{AVERAGED}{path}"], err_msg=path)


def test_it_goes_on_to_the_same_end(older, tmp_path):
    folder = tmp_path / older.name
    shutil.copytree(older, folder)
    wanted_rows, ended = read(folder / "metrics.jsonl"), np.load(folder / "ended.npz")
    train.train(read_config(folder), folder)
    rows = read(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row, wanted in zip(rows, wanted_rows):
        for name in ("train/loss", "train/accuracy", "train/grad_norm", "train/update_norm", "train/learning_rate"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), (row["step"], name)
    state = words(load_state(setup(read_config(folder)).training, folder))
    for path, leaf in ended.items():
        if name := today(path, state):
            np.testing.assert_allclose(state[name], leaf, rtol=1e-5, atol=1e-5, err_msg=path)
    bases = sorted(path.name for path in (folder / "checkpoints").glob("frozen-*"))
    records = [json.loads((folder / "checkpoints" / str(step) / "record" / "metadata").read_text()) for step in (4, 8)]
    assert "base" not in records[0]["content"]
    assert bases == [records[1]["content"]["base"]["name"]]

"""Workdirs that an earlier version wrote: their checkpoints load exactly, and their trainings go on as they did then.

tests/jobs/old_workdirs/NAME.tar.xz is a workdir of commit c54b755 at step 3 of 6, NAME.json what that version had in it
and did next: of each parameter (and average) the length as a vector and the product with cos(0), cos(1), …, at both
steps; and the metrics from step 4 on. They are not made anew: a version that cannot read them must say so.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

from vitvlm.core import paths
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import load_state, setup
from vitvlm.training.workdir import read_config

FOLDER = pathlib.Path(__file__).parent / "old_workdirs"
# A classifier with accumulation, mixup, dropout and averages; contrastive towers; a masked autoencoder.
NAMES = ("classifier", "towers", "mae")
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_loads_exactly_and_goes_on(name, tmp_path):
    with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder, then = tmp_path / name, json.loads((FOLDER / f"{name}.json").read_text())
    config = read_config(folder)  # under the names that fields have now

    _assert_close(_numbers(load_state(setup(config).training, folder, 3)), then["at step 3"], 1e-12)

    # The embedded emoji, which were told by the times of their files then, are the same data.
    train.train(config, folder)
    _assert_close(_numbers(load_state(setup(config).training, folder, 6)), then["at step 6"], TOLERANCE)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = {(line["step"], key): value for line in lines for key, value in line.items()}
    for line in then["metrics"]:
        for key, value in line.items():
            assert metrics[line["step"], key] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), key


def _numbers(state) -> dict[str, tuple[float, float]]:
    found = {"params": state.params, **({} if state.ema is None else {"ema": state.ema})}
    arrays = {path: np.asarray(leaf, np.float64).ravel() for path, leaf in paths.flatten(found).items()}
    return {path: (np.linalg.norm(each), each @ np.cos(np.arange(each.size))) for path, each in arrays.items()}


def _assert_close(now: dict, then: dict, tolerance: float) -> None:
    """Compares parameters. The softmax takes a key's bias out again, so that its gradient is rounding error alone.

    Adam makes steps of the learning rate of it, whatever its size: such a bias is only known to stay small.
    """
    assert now.keys() == then.keys()
    loose = {
        path: 1e-3 if path.endswith("attention/key/bias") and tolerance == TOLERANCE else tolerance for path in now
    }
    different = {
        path: (now[path], numbers)
        for path, numbers in then.items()
        if now[path] != pytest.approx(numbers, rel=loose[path], abs=loose[path])
    }
    assert not different

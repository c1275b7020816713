"""A whole job from its command line: killed and started again, it ends bit for bit like one left alone.

With augmentation, mixup, dropout, worker processes, accumulated gradients and averaged parameters, from an image
folder; and with shards that are streamed.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.data import shards
from vitvlm.jobs import configs
from vitvlm.jobs.training import train
from vitvlm.training import writers
from vitvlm.training.checkpoints import Checkpoints

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "train.py"
STEPS = 12

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    operations = "decode|random_resized_crop(16)|flip|randaugment(2, 9)|normalize"
    return ConfigDict(dict(
        seed=3, total="{steps} steps", batch_size=8, accumulate=2, ema_decay=0.9,
        task=dict(name="classify", label_smoothing=0.1, mixup=0.8),
        model=dict(name="vit", width=16, depth=2, heads=2, mlp_width=32, patch_size=8, image_size=16, num_classes=2,
                   dropout=0.1, drop_path=0.1),
        data=dict(source="folder:{images}", workers=2,
                  train=dict(split="all", ops=operations),
                  eval=dict(split="all", ops="decode|resize(16)|normalize")),
        optimizer=dict(name="adamw", weight_decay=0.05, clip_norm=1.0),
        schedule=dict(name="cosine", peak=1e-2, warmup="2 steps"),
        evals=dict(val=dict(type="classification")),
        checkpoint=dict(every="3 steps"),
        log=dict(every=1),
    ))
"""


STREAMED = """
from ml_collections import ConfigDict

def get_config():
    operations = "decode|random_resized_crop(16)|flip|normalize|tokenize('emoji', 8)"
    sizes = dict(width=16, depth=1, heads=2, mlp_width=32)
    return ConfigDict(dict(
        seed=3, total="{steps} steps", batch_size=8,
        task=dict(name="contrast"),
        model=dict(name="two_towers", image=dict(name="vit", patch_size=8, image_size=16, **sizes),
                   text=dict(name="text", vocab_size=2000, length=8, eot_id=2, **sizes), embed_dim=16),
        data=dict(source="webdataset:{images}/*.tar", workers=2, shuffle_buffer=7, max_unreadable_fraction=0.3,
                  train=dict(split="all", ops=operations),
                  eval=dict(split="all", ops="decode|resize(16)|normalize|tokenize('emoji', 8)")),
        optimizer=dict(name="adamw"),
        schedule=dict(name="constant", peak=1e-2),
        evals=dict(val=dict(type="retrieval")),
        checkpoint=dict(every="3 steps"),
        log=dict(every=1),
    ))
"""


@pytest.fixture(scope="module", params=["folder", "tars"])
def config_file(request, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("job")
    if request.param == "tars":  # of which one is cut off
        shards.folder(folder / "images", [9, 3, 8, 5])
        cut = folder / "images" / "00002.tar"
        cut.write_bytes(cut.read_bytes()[:5000])
        file = folder / "config.py"
        file.write_text(STREAMED.format(steps=STEPS, images=folder / "images"))
        return file
    rng = np.random.default_rng(0)
    for number in range(22):
        path = folder / "images" / ("even", "odd")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + number, 24, 3), np.uint8)).save(path)
    file = folder / "config.py"
    file.write_text(CONFIG.format(steps=STEPS, images=folder / "images"))
    return file


@pytest.fixture(scope="module")
def undisturbed(config_file, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train.train(configs.load(str(config_file), "config"), folder)
    return folder


def result(workdir: pathlib.Path) -> tuple[dict, list[dict]]:
    """Shape, dtype and fingerprint of every array of the last state, and all metrics but times."""
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        arrays = dict(checkpoints.record(STEPS).arrays)
    rows = writers.read(workdir / "metrics.jsonl")
    return arrays, [{name: row[name] for name in row if not name.startswith("time/")} for row in rows]


@pytest.mark.slow
def test_killed_and_started_again_equals_undisturbed(config_file, undisturbed, tmp_path):
    command = [sys.executable, str(SCRIPT), f"--config={config_file}", f"--workdir={tmp_path}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as job:
        metrics = tmp_path / "metrics.jsonl"
        while not metrics.exists() or len(writers.read(metrics)) < 5:
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.002)
        job.kill()
    assert job.returncode == -signal.SIGKILL
    assert 5 <= writers.read(metrics)[-1]["step"] < STEPS, "killed on the way"
    assert train.train(configs.load(str(config_file), "config"), tmp_path)
    (arrays, rows), (wanted_arrays, wanted_rows) = result(tmp_path), result(undisturbed)
    assert {path.split("/")[0] for path in arrays} - {"ema"} == {"step", "params", "opt_state", "rng"}
    assert arrays == wanted_arrays
    assert rows == wanted_rows
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, STEPS + 1))

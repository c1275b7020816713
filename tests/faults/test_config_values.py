"""Values of a config that cannot be meant: one line that names the field, before data, model or memory are touched."""

import math
import pathlib
import time

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from vitvlm.core import config as config_lib
from vitvlm.core import limits
from vitvlm.core.config import ConfigError
from vitvlm.jobs import launch
from vitvlm.jobs.overrides import apply_overrides
from vitvlm.jobs.setup import memory
from vitvlm.jobs.training import train

OPS = "decode|random_resized_crop(16)|flip|normalize"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        path = folder / ("even", "odd")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 24, 3), number, np.uint8)).save(path)
    return folder


def prepared(images: pathlib.Path, *overrides: str) -> train.Prepared:
    sizes = dict(width=16, depth=2, heads=2, mlp_width=32, patch_size=8, image_size=16, num_classes=2)
    config = ConfigDict(
        dict(
            seed=3,
            total="12 steps",
            batch_size=8,
            task=dict(name="classify"),
            model=dict(name="vit", **sizes),
            data=dict(
                source=f"folder:{images}",
                train=dict(split="all", ops=OPS),
                eval=dict(split="all", ops="decode|resize(16)|normalize"),
            ),
            optimizer=dict(name="adamw", weight_decay=0.05, clip_norm=1.0),
            schedule=dict(name="cosine", peak=1e-2, warmup="2 steps"),
            evals=dict(val=dict(type="classification")),
            checkpoint=dict(every="3 steps"),
        )
    )
    apply_overrides(config, [tuple(each.split("=", 1)) for each in overrides])
    return train.prepare(config, images / "no workdir")


def test_the_config_itself_is_sound(images):
    assert prepared(images).job.training.clock.total_steps == 12


HOSTILE = [  # an override, and what its message begins with
    ("total=1e999 steps", "config.total: '1e999 steps' is more than"),
    ("total=1e18 steps", "config.total: '1e18 steps' is more than"),
    ("total=1e400 epochs", "config.total: '1e400 epochs' is more than"),
    ("total=__import__('os').system('true')", "config.total: \"__import__('os').system('true')\" is not a duration"),
    ("total=" + "9" * 5000, "config.total: '9999"),
    ("checkpoint.every=1e999 steps", "config.checkpoint.every: '1e999 steps' is more than"),
    ("evals.val.every=1e999 steps", "config.evals.val.every: '1e999 steps' is more than"),
    ("schedule.warmup=1e999 steps", "config.schedule.warmup: '1e999 steps' is more than"),
    ("batch_size=" + "9" * 30, f"config.batch_size: {'9' * 30} is not between 1 and"),
    ("batch_size=0", "config.batch_size: 0 is not between 1 and"),
    ("batch_size=2_000_000_000", "config.batch_size: 2,000,000,000 examples of 3.09 kB would take 6.18 TB"),
    ("evals.val.batch_size=2_000_000_000", "config.evals.val.batch_size: 2,000,000,000 examples"),
    (f"seed={2**70}", f"config.seed: {2**70} is not between 0 and"),
    ("seed=-1", "config.seed: -1 is not between 0 and"),
    ("accumulate=1_000_000_000", "config.accumulate: a batch of 8 does not divide"),
    ("ema_decay=1e999", "config.ema_decay: inf is not between 0 and 1"),
    ("model.width=1_000_000_000", "config.model.width=1000000000: its 8,000,000,349,000,000,066 parameters, with what"),
    ("model.mlp_width=1_000_000_000", "config.model.mlp_width=1000000000: its 66,000,005,586 parameters, with what"),
    ("model.width=0", "model.width: 0 is not between 1 and"),
    ("model.width=1e999", "config.model.width: inf is not between"),
    ("model.depth=1_000_000_000", "model.depth: 1000000000 is not between 1 and 10,000"),
    ("model.heads=0", "model.heads: 0 is not between"),
    ("model.patch_size=0", "model.patch_size: 0 is not between"),
    ("model.image_size=(16, -16)", "model.image_size: -16 is not between"),
    ("model.image_size=1_000_000_000", "model.image_size: 1000000000 is not between"),
    ("model.dropout=2", "model.dropout: 2 is not between 0 and 1"),
    ("model.dtype=__import__('os')", "model.dtype: \"__import__('os')\" is no dtype"),
    ("model.name=vit().__class__", "model 'vit().__class__': no such model"),
    ("task.name=[1]", "task [1]: no such task"),
    ("task.mixup=-1", "config.task.mixup: -1 is not between"),
    ("data.train.ops=decode|resize(1000000000)|normalize", "operation resize(1000000000): size: 1000000000 is not"),
    ("data.eval.ops=decode|resize(1000000000)|normalize", "operation resize(1000000000): size: 1000000000 is not"),
    ("data.train.ops=decode|resize((16, 10000000000))|normalize", "operation resize((16, 10000000000)): size: 1000000"),
    ("data.train.ops=decode|random_crop(16, 1000000000)|normalize", "operation random_crop(16, 1000000000): padding: "),
    ("data.train.ops=decode|randaugment(1000000000)|normalize", "operation randaugment(1000000000): n: 1000000000"),
    ("data.train.ops=decode|pad('boxes', 1000000000)", "operation pad('boxes', 1000000000): size: 1000000000"),
    ("data.train.ops=decode|tokenize('emoji', 1000000000)", "operation tokenize('emoji', 1000000000): length: 100000"),
    ("data.train.ops=__import__('os').system('true')", 'operations "__import__'),
    ("data.source=__import__('os').system('true')", 'data source "__import__'),
    ("data.workers=1_000_000_000", "config.data.workers: 1000000000 is not between 0 and"),
    ("data.balance=1e999", "config.data.balance: inf is not between"),
    ("optimizer.weight_decay=nan", "config.optimizer.weight_decay: 'nan' is not a number"),
    ("optimizer.weight_decay=1e999", "config.optimizer.weight_decay: inf is not between"),
    ("optimizer.name=__import__('os')", "config.optimizer.name: no optimizer"),
    ("schedule.peak=1e999", "config.schedule.peak: inf is not between"),
    ("checkpoint.keep_last=0", "config.checkpoint.keep_last: 0 is not between"),
    ("log.every=0", "config.log.every: 0 is not between"),
    ("mesh.data=1e999", "config.mesh.data: inf is not between"),
]


@pytest.mark.parametrize(("override", "message"), HOSTILE, ids=[override[:40] for override, _ in HOSTILE])
def test_a_value_that_cannot_be_meant_is_one_line(images, override, message, monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 100e9)
    began = time.monotonic()
    with pytest.raises(launch.EXPECTED) as refused:
        prepared(images, override)
    said = str(refused.value)
    assert said.startswith(message) and "\n" not in said and len(said) < 700
    assert time.monotonic() - began < 5


def test_a_state_is_judged_by_all_that_it_holds(images, monkeypatch):
    """31 kB of parameters would fit into 40 kB; with two moments each they do not."""
    monkeypatch.setattr(memory, "host_bytes", lambda: 40_000)
    with pytest.raises(ConfigError, match=r"config\.model.*: its 7,698 parameters, with what trains them, would take"):
        prepared(images)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e300, 2**31, (1, (2, 10**12)), [math.nan]])
def test_numbers_of_any_field_are_bounded(value):
    annotation = int if isinstance(value, int) else None
    bounded = limits.problem(value, annotation, "config.x")
    assert bounded is None if value == (1, (2, 10**12)) else bounded.startswith("config.x: ")


def test_limits_are_of_the_type_alone():
    assert limits.kinds(limits.Count | None) == (int, type(None))
    assert limits.bare(limits.Sides) == int | tuple
    config_lib.check_type(None, limits.Count | None, "x")
    config_lib.check_type(1, limits.Share, "x")
    for value, annotation in [(True, limits.Count), ("3", limits.Count), (0, limits.Count | None), (1.5, limits.Share)]:
        with pytest.raises(ConfigError, match=r"^x: "):
            config_lib.check_type(value, annotation, "x")

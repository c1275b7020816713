"""Sweeps that really train."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image

from vitvlm.core.config import ConfigError
from vitvlm.jobs import configs
from vitvlm.jobs.ablate import ablate
from vitvlm.jobs.ablation import stage
from vitvlm.jobs.ablation.plan import plan
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.jobs.training.setup import setup
from vitvlm.models.connectors import build_connector
from vitvlm.training.interrupts import Interrupted

POPEN = subprocess.Popen

BASE = """
from ml_collections import ConfigDict

def get_config(arg=""):
    config = ConfigDict()
    config.seed = 0
    config.total = "4 steps"
    config.batch_size = 4
    config.image_size = 8
    size = config.get_ref("image_size")
    config.task = dict(name="classify")
    config.model = dict(name="vit", width=8, depth=1, heads=2, mlp_width=16, patch_size=4, pool="gap")
    config.model.update(image_size=size, num_classes=2)
    ops = "decode|resize(" + size.to_str() + ")|normalize"
    config.data = dict(source="folder:{images}", train=dict(split="train", ops=ops), eval=dict(split="test", ops=ops))
    config.optimizer = dict(name="adamw")
    config.schedule = dict(name="constant", peak=1e-2)
    config.evals = dict(test=dict(type="classification"))
    config.log = dict(every=1)
    return config
"""


@pytest.fixture
def base(tmp_path):
    """A config of a tiny ViT on two classes of noise, bright and dark."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 6)):
        for place, name in enumerate(("dark", "bright")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (8, 8, 3)) + 120 * place
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    path = tmp_path / "base.py"
    path.write_text(BASE.replace("{images}", str(tmp_path / "images")))
    return path


def sweep(base, patches, total="4 steps"):
    return {
        "title": "Patch size",
        "axis": "patch size (pixels)",
        "budget": {"train": total},
        "stages": ({"name": "train", "base": str(base)},),
        "variants": tuple(
            {"name": f"patch_{patch}", "value": patch, "overrides": {"train": {"model": {"patch_size": patch}}}}
            for patch in patches
        ),
        "scores": ({"label": "top-1", "metric": "train.test/top1"},),
    }


def test_what_a_patch_size_costs(base, tmp_path):
    planned = plan(sweep(base, (2, 4)), tmp_path)
    named = [planned.configs[f"patch_{patch}", "train"] for patch in (2, 4)]
    named[1] = {**named[1], "optimizer": {**named[1]["optimizer"], "freeze": (("head/.*", False), (".*", True))}}
    small, large = (stage.facts(setup(config).training) for config in named)
    assert "trained_parameters" not in small and large["trained_parameters"] == 8 * 2 + 2
    assert (small["tokens"], large["tokens"]) == (16, 4)
    assert (small["examples"], large["examples"]) == (16, 16)
    assert small["forward_flops"] > 2 * large["forward_flops"] > 0
    assert small["step_bytes"] > large["step_bytes"] > 0
    # positions and patch projection follow from the patch: 16·8 + 12·8 against 4·8 + 48·8 values
    assert small["parameters"] - large["parameters"] == (16 * 8 + 12 * 8) - (4 * 8 + 48 * 8)


def test_tokens_are_counted_for_every_encoder_of_patches(base, tmp_path):
    """An ablation of Swin ended in AttributeError: 'Swin' object has no attribute 'special'."""
    config = plan(sweep(base, (4,)), tmp_path).configs["patch_4", "train"]
    swin = {"name": "swin", "width": 8, "depths": (1, 1), "heads": (1, 2), "window": 2, "patch_size": 2}
    counted = {}
    for name, model in {
        "swin": swin,
        "fpn": {"name": "fpn", "backbone": {**swin, "num_classes": 2}},
        "vit": {**config["model"], "pool": "cls", "registers": 3},
        "resnet": {"name": "resnet", "widths": (8,), "depths": (1,), "stem_width": 4, "num_classes": 2},
    }.items():
        own = {} if name == "fpn" else {"num_classes": 2}
        counted[name] = stage._tokens(setup({**config, "model": model | own}).model)
    assert counted == {
        "swin": {"tokens": 16.0, "encoder_tokens": 16.0},
        "fpn": {"tokens": 16.0, "encoder_tokens": 16.0},
        "vit": {"tokens": 4.0, "encoder_tokens": 8.0},
        "resnet": {},
    }


def test_one_process_per_stage_and_its_failures(base, tmp_path, capfd):
    done, failed = ablate(sweep(base, (4, 3)), tmp_path / "work", say=lambda line: None)
    assert (done.status, failed.status) == ("done", "failed")
    assert "image 8x8 is not divisible by patch 3x3" in failed.failure
    assert done.costs["train"]["step_seconds"] > 0 and done.costs["train"]["process_bytes"] > 1e8
    assert [step for step, _ in done.curves["train"]] == [1, 2, 3, 4]
    assert done.scores[0].protocol.startswith("classification, 2 classes, n=12")
    assert done.scores[0].low <= done.scores[0].estimate <= done.scores[0].high
    assert "step 4/4" in "".join(capfd.readouterr())


def test_the_command_of_a_sweep_in_which_all_fail_ends_with_an_error(base, tmp_path):
    wrong = {"name": "patch_four", "overrides": {"train": {"model": {"patch_size": "four"}}}}  # fails untrained
    config = sweep(base, (4,)) | {"variants": (wrong,)}
    (tmp_path / "sweep.py").write_text(
        f"import ml_collections\ndef get_config(): return ml_collections.ConfigDict({config})"
    )
    command = [sys.executable, "scripts/ablate.py", f"--config={tmp_path}/sweep.py", f"--workdir={tmp_path}/work"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "1 of 1 variants failed, the first of them patch_four: train: " in done.stdout
    assert "Traceback" not in done.stderr


def test_processes_that_die_or_are_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(
        stage.subprocess, "Popen", _popen_that_runs("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    )
    with pytest.raises(stage.StageFailed, match=r"killed .*memory"):
        stage.run_apart({}, epath.Path(tmp_path / "a"))
    monkeypatch.setattr(stage.subprocess, "Popen", _popen_that_runs("import sys; sys.exit(7)"))
    with pytest.raises(stage.StageFailed, match="status 7"):
        stage.run_apart({}, epath.Path(tmp_path / "b"))


def test_sigterm_reaches_the_training_and_ends_the_sweep(tmp_path, monkeypatch):
    waits = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
        "print(1, flush=True); [time.sleep(0.1) for _ in range(600)]"
    )
    monkeypatch.setattr(stage.subprocess, "Popen", _popen_that_runs(waits, ready := threading.Event()))

    def terminate():
        ready.wait(30)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    before, start = signal.getsignal(signal.SIGTERM), time.monotonic()
    with pytest.raises(Interrupted, match="run the same command again"):
        stage.run_apart({}, epath.Path(tmp_path / "a"))
    assert time.monotonic() - start < 40
    assert signal.getsignal(signal.SIGTERM) is before


def _popen_that_runs(code, ready=None):
    def start(command, **options):
        assert command[1:3] == ["-m", "vitvlm.jobs.ablation.stage"]
        child = POPEN([sys.executable, "-c", code], stdout=subprocess.PIPE, **options)
        if ready is not None:
            child.stdout.readline()
            ready.set()
        return child

    return start


@pytest.mark.parametrize("argument", ["", "debug"])
@pytest.mark.parametrize("name", ["patch_size", "mask_ratio", "fusion", "connectors"])
def test_every_training_of_the_shipped_sweeps_can_be_built(name, argument, tmp_path):
    argument = argument or ("tokens=64" if name == "connectors" else "")  # its numbers of tokens: below
    planned = plan(configs.load(f"configs/ablations/{name}.py:{argument}", "config"), tmp_path)
    shapes = {}
    for (variant, stage_name), config in planned.configs.items():
        assert not isinstance(config, ConfigError), config
        named = {"classes": tuple("abcdefghij")} if config["model"].get("num_classes") == "data" else {}
        shapes[variant, stage_name] = ModelSetup.of({**config, **named}).variable_shapes
    assert len(planned.variants) >= (2 if argument == "debug" else 3)
    assert len(shapes) == len(planned.variants) * len(planned.stages)


def test_connectors_by_image_tokens_and_seed(tmp_path):
    """Every connector gives the tokens of its row's name, of one image; a seed is a row and changes nothing else."""
    planned = plan(configs.load("configs/ablations/connectors.py:seeds=2", "config"), tmp_path)
    assert len(planned.variants) == 6 * 3 * 2 and {variant.value for variant in planned.variants} == {16, 64, 256}
    for variant in planned.variants:
        config = planned.configs[variant.name, "train"]
        assert config["seed"] == int(variant.name[-1]) and "resize(224)" in config["data"]["train"]["ops"]
        connector = build_connector(config["model"]["connector"], 576)
        taken = 1 if connector.fusion == "cross" else int(variant.value)
        assert connector.count((16, 16)) == taken and f"image_tokens={taken}, " in config["data"]["train"]["ops"]
        assert connector.fusion == "prefix" or connector.latents == variant.value
        other = planned.configs[f"{variant.name[:-1]}{1 - config['seed']}", "train"]
        assert {**other, "seed": config["seed"]} == config


def test_fusions_differ_in_the_model_and_share_data_and_budget(tmp_path):
    for argument in ("", ":debug"):
        planned = plan(configs.load(f"configs/ablations/fusion.py{argument}", "config"), tmp_path)
        early, mid, late = (planned.configs[name, "train"] for name in ("early", "mid", "late"))
        assert (early["model"]["connector"]["name"], late["model"]["name"]) == ("none", "two_towers")
        assert mid["model"]["connector"]["name"] == "cross_attention" and mid["model"]["text"] == {
            **early["model"]["text"],
            "length": mid["model"]["text"]["length"],
        }
        sizes = ("width", "depth", "heads", "mlp_width")
        parts = (
            early["model"]["text"],
            *(config["model"][name] for config in (mid, late) for name in ("image", "text")),
        )
        assert len({tuple(part[name] for name in sizes) for part in parts}) == 1
        for config in (early, mid, late):
            assert {name: config[name] for name in ("batch_size", "total", "seed")} == {
                name: early[name] for name in ("batch_size", "total", "seed")
            }
            assert config["data"]["source"] == early["data"]["source"]
            assert config["data"]["train"]["split"] == early["data"]["train"]["split"]
            assert config["data"]["eval"]["split"] == early["data"]["eval"]["split"]


def test_an_image_cannot_have_any_number_of_tokens():
    for tokens, message in ((50, "leave 256, 64, 16, 4, 1"), (512, "leave 256"), (0, "needs one")):
        with pytest.raises(ConfigError, match=f"config argument tokens={tokens}: .*{message}"):
            configs.load(f"configs/vlm_scenes.py:connector=linear,tokens={tokens}", "config")

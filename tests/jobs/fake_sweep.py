"""A sweep whose trainings are made up: what they would leave in their workdirs, without any training."""

import json
import pathlib

import numpy as np
from PIL import Image

from vitvlm.evaluation import bootstrap
from vitvlm.jobs.ablation.stage import StageFailed

BASE = """
from ml_collections import ConfigDict

def get_config(arg=""):
    config = ConfigDict()
    config.total = "4 steps"
    config.batch_size = 8
    config.image_size = 32
    config.model = dict(patch_size=4, image_size=config.get_ref("image_size"))
    config.grid = config.get_ref("image_size") // config.model.get_ref("patch_size")
    config.init_from = dict(path="")
    return config
"""


def sweep(folder: pathlib.Path, **fields):
    """A two-stage sweep over patch sizes, its base config written beside; `fields` replace its own."""
    base = folder / "base.py"
    folder.mkdir(parents=True, exist_ok=True)
    base.write_text(BASE)
    return {
        "title": "Patch size <under> one budget",
        "question": "Do smaller patches pay?",
        "axis": "patch size (pixels)",
        "budget": {"pretrain": "40 steps", "tune": "10 steps"},
        "stages": (
            {"name": "pretrain", "base": str(base)},
            {"name": "tune", "base": str(base), "overrides": {"init_from": {"path": "{pretrain}"}}},
        ),
        "variants": tuple(
            {
                "name": f"patch_{size}",
                "value": float(size),
                "overrides": {stage: {"model": {"patch_size": size}} for stage in ("pretrain", "tune")},
            }
            for size in (2, 4, 8, 16)
        ),
        "scores": (
            {"label": "linear probe", "metric": "pretrain.probe/top1"},
            {"label": "fine-tuned", "metric": "tune.test/top1"},
        ),
    } | fields


class Trainings:
    """Stands for `run_apart`; remembers what it ran, and fails where `broken` says."""

    def __init__(self, broken=()):
        self.broken, self.ran = broken, []

    def __call__(self, config, folder):
        name, stage = folder.parent.name, folder.name
        self.ran.append((name, stage))
        patch = config["model"]["patch_size"]
        rng = np.random.default_rng(patch)
        folder.mkdir(parents=True, exist_ok=True)
        steps = int(config["total"].split()[0])
        with (folder / "metrics.jsonl").open("w") as file:
            for step in range(1, steps + 1):
                loss = 2.3 * np.exp(-step / (6 + patch)) + 0.02 * patch + 0.03 * rng.random()
                file.write(json.dumps({"step": step, "train/loss": loss}) + "\n")
        if (name, stage) in self.broken:
            raise StageFailed("RuntimeError: out of <memory> | at step 3", "Traceback: a\n<b>line</b>")
        evaluator = "probe" if stage == "pretrain" else "test"
        evaluation = pathlib.Path(folder) / "evaluations" / f"{steps:08d}" / evaluator
        hard = np.random.default_rng(0).random(800)
        correct = hard < 0.9 - 0.02 * patch - 0.05 * (stage == "pretrain") + 0.02 * rng.normal(size=800)
        bootstrap.save_examples(evaluation, np.arange(800), correct=correct)
        protocol = f"{evaluator} of everything, n=800"
        (evaluation / "result.json").write_text(json.dumps({"name": evaluator, "protocol": protocol, "metrics": {}}))
        if stage == "pretrain":
            Image.fromarray(rng.integers(0, 255, (40, 120, 3)).astype(np.uint8)).save(evaluation / "reconstruction.png")
        estimate, low, high = bootstrap.mean(correct)
        tokens = (32 // patch) ** 2
        return {
            "metrics": {f"{evaluator}/top1{end}": v for end, v in zip(("", "_low", "_high"), (estimate, low, high))},
            "facts": {
                "parameters": 4e5 + 1000.0 * tokens,
                "tokens": float(tokens),
                "encoder_tokens": tokens + 1.0,
                "forward_flops": 1e6 * tokens + 1e3 * tokens**2,
                "total_flops": 3e9 * tokens,
                "steps": float(steps),
                "examples": 8.0 * steps,
                "step_bytes": 1e6 * tokens + 2e7,
            },
            "measured": {"step_seconds": 0.003 * tokens + 0.02, "process_bytes": 6e8 + 1e6 * tokens},
        }

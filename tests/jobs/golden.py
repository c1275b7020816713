"""Resolved configs as text: what a change of a config, or of what it shares with others, really changed.

    python -m tests.jobs.golden

rewrites the dumps in tests/jobs/golden/ after a wanted change; the diff is then what to review.
"""

import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vitvlm.core import config as config_lib
from vitvlm.jobs import fields
from vitvlm.jobs.training import stages

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = pathlib.Path(__file__).parent / "golden"
VARIANTS = (
    "configs/blip.py:learn=captions",
    "configs/blip.py:learn=questions",
    "configs/blip2.py:stage=2",
    "configs/clip_emoji.py:loss=sigmoid",
    "configs/lit_emoji.py:loss=sigmoid,lock=both",
    *(f"configs/prefix_vlm.py:system={name}" for name in ("nanovlm", "idefics3", "llava_next", "qwen2_vl")),
    "configs/vit_fashion.py:flexible",
    "configs/vlm_published.py:data=emoji",
)  # arguments that make another job of a file
CONFIGS = sorted([*VARIANTS, *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/*.py"))])
ABLATIONS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/ablations/*.py"))
EVALUATIONS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/evaluations/*.py"))


def load(path: str, arg: str = "") -> ConfigDict:
    """A config file's config; `path` may have an argument of its own after a colon."""
    path, _, own = path.partition(":")
    arg = ",".join(filter(None, (own, arg)))
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def jobs(plain: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the configs of a training's stages, or the config itself if it has none."""
    return list(stages.configs(plain).values()) if fields.STAGES in plain else [plain]


def dump(path: str) -> str:
    """The resolved config as JSON, one field a line."""
    return json.dumps(config_lib.plain(load(path)), indent=1, sort_keys=True) + "\n"


def golden(path: str) -> pathlib.Path:
    file, _, argument = path.partition(":")
    name = pathlib.Path(file).relative_to("configs").with_suffix("").as_posix().replace("/", "-")
    return FOLDER / f"{'-'.join(filter(None, (name, argument)))}.json"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path in CONFIGS + ABLATIONS + EVALUATIONS:
        golden(path).write_text(dump(path))

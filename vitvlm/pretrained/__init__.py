"""Weights in and out: what other code bases trained, and what they can load.

loaded = pretrained.load("path/to/folder")
loaded.model.apply(loaded.variables, images).logits
pretrained.save(loaded, "path/to/another")
"""

import os
from pathlib import Path
from typing import Any

from vitvlm.core.config import ConfigError, suggest
from vitvlm.pretrained import huggingface, layouts, npz, onnx, open_clip, timm, workdir
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.workdir import CHECKPOINTS

__all__ = ["CHECKPOINTS", "Pretrained", "WeightsError", "load", "save"]

FILES = {".npz": npz.load, ".onnx": onnx.load}
WRITERS = {"hf": huggingface.save, "timm": timm.save, "open_clip": open_clip.save, "vitvlm": workdir.save}


def load(path: str | os.PathLike, **fields: Any) -> Pretrained:
    """Model, weights and preprocessing, as the source itself says:

    - a folder of Hugging Face `transformers` or of timm: config.json, and safetensors or PyTorch's files, or shards;
    - a folder of open_clip: open_clip_config.json, and open_clip_model.safetensors or open_clip_pytorch_model.bin;
      where there is a config.json too, that is the one that is read;
    - `file.npz`, or a subtree of one, `file.npz:img`, of big_vision or vision_transformer;
    - one file of PyTorch's or safetensors, with any suffix, in a layout of `layouts.LAYOUTS`, or beside its config;
      `subtree=` chooses one of several models in it; a folder without a config that has one such file;
    - `file.onnx` with a DINOv2 in it;
    - a workdir of a training of ours: its latest checkpoint, or that of `step=`.

    Args:
      fields: fields of the model that leave its parameters as they are, such as scan, remat or dtype; for a file that
        has no config also what an error asks for, such as image_size or heads.

    Raises WeightsError that says which file is wrong, and how. No code in a checkpoint is ever executed.
    """
    path = Path(path)
    name, colon, subtree = path.name.partition(".npz:")
    if colon:
        return npz.load(path.with_name(name + ".npz"), subtree, **fields)
    if path.suffix in FILES:
        return FILES[path.suffix](path, **fields)
    if not path.exists():
        raise WeightsError(f"{path}: no such file or folder")
    if path.is_file():
        return layouts.load(path, **fields)
    if (path / CHECKPOINTS).is_dir():
        return workdir.load(path, **fields)
    if (read := layouts.folder_reader(path)) is not None:
        return read(path, **fields)
    if (file := layouts.alone(path)) is not None:
        return layouts.load(file, **fields)
    raise WeightsError(
        f"{path}: neither the workdir of a training nor weights: no {CHECKPOINTS}, no {huggingface.CONFIG}, "
        f"no {open_clip.CONFIG}, no file {', '.join(layouts.SUFFIXES)}"
    )


def save(loaded: Pretrained, path: str | os.PathLike, format: str = "hf") -> None:
    """Writes a folder in another code base's format: "hf" for `transformers`, "timm", "open_clip"; "vitvlm" is our own.

    Raises ConfigError for an unknown format, or a model that the format cannot express.
    """
    if format not in WRITERS:
        raise ConfigError(f"format {format!r}; {suggest(format, WRITERS)}")
    WRITERS[format](loaded, Path(path))

"""Weights in and out: what other code bases trained, and what they can load.

loaded = pretrained.load("path/to/folder")
loaded.model.apply(loaded.variables, images).logits
pretrained.save(loaded, "path/to/another")
"""

import os
from pathlib import Path
from typing import Any

from vitvlm.core.config import ConfigError, suggest
from vitvlm.pretrained import huggingface, onnx
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.tensors import WeightsError

__all__ = ["Pretrained", "WeightsError", "load", "save"]

WRITERS = {"hf": huggingface.save}


def load(path: str | os.PathLike, **fields: Any) -> Pretrained:
    """Model, weights and preprocessing from a Hugging Face folder, or a DINOv2 from an ONNX file (see pretrained.onnx).

    Args:
      fields: fields of the model that leave its parameters as they are, such as scan, remat or dtype.

    Raises WeightsError that says which file is wrong, and how. No code in a checkpoint is ever executed.
    """
    path = Path(path)
    return onnx.load(path, **fields) if path.suffix == ".onnx" else huggingface.load(path, **fields)


def save(loaded: Pretrained, path: str | os.PathLike, format: str = "hf") -> None:
    """Writes a model in another code base's format: "hf", a folder that `transformers` loads.

    Raises ConfigError for an unknown format, or a model that the format cannot express.
    """
    if format not in WRITERS:
        raise ConfigError(f"format {format!r}; {suggest(format, WRITERS)}")
    WRITERS[format](loaded, Path(path))

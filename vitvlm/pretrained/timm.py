"""Folders as timm has them on the hub: config.json with an "architecture" and a "pretrained_cfg", and safetensors."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitvlm.core.config import suggest
from vitvlm.pretrained import timm_resnet, timm_swin, timm_vit
from vitvlm.pretrained.entries import WeightsError, blamed
from vitvlm.pretrained.families import Family, Json, assemble, image_inputs, still_describes, take_apart
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.tensors import open_folder, read_json, write_folder

CONFIG = "config.json"

# By the letters that an architecture's name begins with: "vit_base_patch16_224", "resnet50".
FAMILIES: Mapping[str, Family] = {**timm_vit.FAMILIES, **timm_resnet.FAMILIES, **timm_swin.FAMILIES}


def load(folder: Path, **fields: Any) -> Pretrained:
    """A model with its weights and preprocessing, as config.json says.

    Args:
      fields: fields of the model that leave its parameters as they are: scan, remat, dtype, dropout.

    Raises WeightsError for a folder that is damaged or that we have no table for.
    """
    source = read_json(folder / CONFIG)
    name = _family(source)
    if name not in FAMILIES:
        raise WeightsError(f"{folder / CONFIG}: architecture {source['architecture']!r}; {suggest(name, FAMILIES)}")
    with blamed(folder, folder / CONFIG):
        channels, *size = source["pretrained_cfg"]["input_size"]
        inputs = image_inputs(tuple(size), channels)
        section, model, variables = assemble(FAMILIES[name], source, open_folder(folder), inputs, fields)
        preprocessing = operations(source["pretrained_cfg"])
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=preprocessing,
        texts=None,
        source={"path": str(folder), "format": "timm", "model": section, "config": source},
    )


def save(loaded: Pretrained, folder: Path) -> None:
    """Writes what `timm.create_model("local-dir:FOLDER")` loads.

    Raises ConfigError for a model that timm cannot express, with the reason.
    """
    config, tensors = take_apart(FAMILIES, loaded.model, loaded.variables, "timm")
    if loaded.source.get("format") == "timm":
        source = loaded.source["config"]
        if still_describes(FAMILIES[_family(source)], source, loaded.model, loaded.variables, tensors):
            config = source
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, folder)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _family(source: Json) -> str:
    return re.match("[a-z]*", str(source["architecture"]))[0]


def operations(source: Json) -> str | None:
    """timm's evaluation: the shorter side to size / crop_pct, the middle of it, normalised. None if it does not say.

    Raises WeightsError for a way of cropping that our operations cannot follow.
    """
    if "mean" not in source:
        return None
    channels, height, width = source["input_size"]
    interpolation, mode = source.get("interpolation", "bilinear"), source.get("crop_mode", "center")
    if mode == "squash" or (mode == "center" and height != width):
        resize = f"resize({(height, width)}, {interpolation!r})"
    elif mode == "center":
        resize = f"resize_small({math.floor(height / source.get('crop_pct', 0.875))}, {interpolation!r})"
    else:
        raise WeightsError(f"config.json: crop_mode {mode!r}; there is: center, squash")
    crop = "" if mode == "squash" else f"|central_crop({(height, width)})"
    return f"decode({channels})|{resize}{crop}|normalize({tuple(source['mean'])}, {tuple(source['std'])})"

"""Folders as timm has them on the hub: config.json with an "architecture" and a "pretrained_cfg", and safetensors."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from vitvlm.core.config import ConfigError, suggest
from vitvlm.pretrained import class_names, timm_preprocessing, timm_resnet, timm_swin, timm_vit
from vitvlm.pretrained.entries import Tensors, WeightsError, blamed
from vitvlm.pretrained.families import Family, Json, assemble, image_inputs, still_describes, take_apart
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.tensors import open_folder, read_json, write_folder
from vitvlm.pretrained.wrappers import unwrap

CONFIG = "config.json"

# By the letters that an architecture's name begins with: "vit_base_patch16_224", "resnet50".
FAMILIES: Mapping[str, Family] = {**timm_vit.FAMILIES, **timm_resnet.FAMILIES, **timm_swin.FAMILIES}

TODAYS_NAMES = {"vit": timm_vit.todays_names, "deit": timm_vit.todays_names, "swin": timm_swin.todays_names}


def open(folder: Path, tensors: Tensors | None = None, **fields: Any) -> Pretrained:
    """A model with its weights and preprocessing, as config.json says.

    Args:
      tensors: of another file than the folder's own.
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
        inside = unwrap(open_folder(folder) if tensors is None else tensors)
        tensors = TODAYS_NAMES[name](inside.tensors) if name in TODAYS_NAMES else inside.tensors
        section, model, variables = assemble(FAMILIES[name], source, tensors, inputs, fields)
        preprocessing = timm_preprocessing.operations(source["pretrained_cfg"])
    inside.say(folder)
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=preprocessing,
        texts=None,
        source={
            "path": str(folder),
            "format": "timm",
            "model": section,
            "config": source,
            "left_out": list(inside.left_out),
        },
        class_names=class_names.read(_label_names(source), model.num_classes),
    )


def _label_names(source: Json) -> Any:
    """Names of the classes, where a config of timm has them: beside the architecture, "labels" in older ones."""
    described = source.get("pretrained_cfg", {})
    return next(
        (each[name] for name in ("label_names", "labels") for each in (source, described) if each.get(name)), None
    )


def save(loaded: Pretrained, folder: Path) -> None:
    """Writes what `timm.create_model("local-dir:FOLDER")` loads, by which timm makes the pixels that
    `loaded.preprocessing` makes.

    Warns of preprocessing that timm cannot express, and of small differences.

    Raises ConfigError for a model that timm cannot express, with the reason.
    """
    config, tensors = take_apart(FAMILIES, loaded.model, loaded.variables, "timm")
    if loaded.source.get("format") == "timm":
        source = loaded.source["config"]
        if still_describes(FAMILIES[_family(source)], source, loaded.model, loaded.variables, tensors):
            config = source
    if loaded.preprocessing != timm_preprocessing.operations(config["pretrained_cfg"]):
        config = {**config, "pretrained_cfg": _with_preprocessing(config["pretrained_cfg"], loaded.preprocessing)}
    if loaded.class_names is not None:
        config = config | {"label_names": list(loaded.class_names)}
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, folder)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _with_preprocessing(described: Json, preprocessing: str | None) -> dict[str, Any]:
    """Replaces the preprocessing in a pretrained_cfg, or removes it."""
    kept = {key: value for key, value in described.items() if key not in timm_preprocessing.SAID}
    if preprocessing is None:
        return kept
    try:
        said, differences = timm_preprocessing.described(preprocessing, described["input_size"][1:])
    except ConfigError as error:
        logging.warning("%s does not express the preprocessing, which is %r: %s", CONFIG, preprocessing, error)
        return kept
    for difference in differences:
        logging.warning("%s: %s", CONFIG, difference)
    return kept | said


def _family(source: Json) -> str:
    return re.match("[a-z]*", str(source["architecture"]))[0]

"""Folders in the Hugging Face format, in and out: config.json, preprocessor_config.json and safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from vitvlm.core.config import suggest
from vitvlm.nn.patches import as_pair
from vitvlm.pretrained import deit, dinov2, efficientnet, mae, preprocessing, resnet, swin, vit
from vitvlm.pretrained.entries import WeightsError, blamed
from vitvlm.pretrained.families import Family, Json, assemble, take_apart
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.tensors import open_folder, read_json, write_folder

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"

# By the architecture that config.json names.
FAMILIES: Mapping[str, Family] = {
    **vit.FAMILIES,
    **deit.FAMILIES,
    **dinov2.FAMILIES,
    **mae.FAMILIES,
    **swin.FAMILIES,
    **resnet.FAMILIES,
    **efficientnet.FAMILIES,
}


def load(folder: Path, **fields: Any) -> Pretrained:
    """A model with its weights and preprocessing, everything as the folder's own files say.

    Args:
      fields: fields of the model that leave its parameters as they are: scan, remat, dtype, dropout.

    Raises WeightsError for a folder that is damaged or that we have no table for, listing every tensor that is
    missing, unused or of another shape than the config says; nothing is allocated before that is known.
    """
    source = read_json(folder / CONFIG)
    name = str((source.get("architectures") or ["none"])[0])
    if name not in FAMILIES:
        raise WeightsError(f"{folder / CONFIG}: architecture {name!r}; {suggest(name, FAMILIES)}")
    channels = source.get("num_channels", 3)
    with blamed(folder, folder / CONFIG):
        model, variables = assemble(
            FAMILIES[name], source, open_folder(folder), as_pair(source.get("image_size", 224)), channels, fields
        )
    described = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else None
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=described and preprocessing.operations(described, channels),
        tokenizer=None,
        source={"path": str(folder), "format": "hf", "config": source, "preprocessor": described},
    )


def save(loaded: Pretrained, folder: Path) -> None:
    """Writes what `from_pretrained` loads: config.json, model.safetensors and, if it came with one, the preprocessor's.

    Raises ConfigError for a model that no architecture of `transformers` can express, with the reason.
    """
    config, tensors = take_apart(FAMILIES, loaded.model, loaded.variables, "hf")
    dtype = jax.tree.leaves(loaded.variables["params"])[0].dtype
    config = config | _kept(loaded.source, config) | {"dtype": str(dtype)}
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, folder)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if described := loaded.source.get("preprocessor"):
        (folder / PREPROCESSOR).write_text(json.dumps(described, indent=2) + "\n")


def _kept(source: Json, config: Json) -> dict[str, Any]:
    """What the weights' own config.json of the same architecture says besides, and the names of its classes."""
    own = source.get("config", {})
    if own.get("architectures") != config["architectures"]:
        return {}
    return {name: value for name, value in own.items() if name not in config or name in ("id2label", "label2id")}

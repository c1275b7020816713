"""Folders in the Hugging Face format, in and out: config.json, preprocessor_config.json and safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from vitvlm.core.config import suggest
from vitvlm.pretrained import (
    align,
    bert,
    clip,
    deit,
    dinov2,
    efficientnet,
    mae,
    preprocessing,
    resnet,
    siglip,
    swin,
    texts,
    vit,
)
from vitvlm.pretrained.entries import WeightsError, blamed
from vitvlm.pretrained.families import Family, Json, assemble, take_apart
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.tensors import open_folder, read_json, write_folder

CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"

# By the architecture that config.json names.
FAMILIES: Mapping[str, Family] = {
    **vit.FAMILIES,
    **deit.FAMILIES,
    **dinov2.FAMILIES,
    **mae.FAMILIES,
    **swin.FAMILIES,
    **resnet.FAMILIES,
    **efficientnet.FAMILIES,
    **clip.FAMILIES,
    **siglip.FAMILIES,
    **bert.FAMILIES,
    **align.FAMILIES,
}


def load(folder: Path, **fields: Any) -> Pretrained:
    """A model with its weights, preprocessing and tokenizer, everything as the folder's own files say.

    Args:
      fields: fields of the model that leave its parameters as they are: scan, remat, dtype, dropout, and a text
        encoder's pool.

    Raises WeightsError for a folder that is damaged or that we have no table for, listing every tensor that is
    missing, unused or of another shape than the config says; nothing is allocated before that is known.
    """
    source = read_json(folder / CONFIG)
    name = str((source.get("architectures") or ["none"])[0])
    if name not in FAMILIES:
        raise WeightsError(f"{folder / CONFIG}: architecture {name!r}; {suggest(name, FAMILIES)}")
    fields = FAMILIES[name].read_beside(folder, fields) | fields
    with blamed(folder, folder / CONFIG):
        inputs = FAMILIES[name].inputs(source)
        section, model, variables = assemble(FAMILIES[name], source, open_folder(folder), inputs, fields)
    described = _image_processor(folder)
    channels = inputs[0].shape[-1]  # whoever has a preprocessor sees images
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=described and preprocessing.operations(described, channels),
        texts=_texts(FAMILIES[name], model, folder),
        source={"path": str(folder), "format": "hf", "model": section, "config": source, "preprocessor": described},
    )


def save(loaded: Pretrained, folder: Path) -> None:
    """Writes what `from_pretrained` loads: config.json, model.safetensors and, if it came with them, the preprocessor's
    config and the tokenizer's files.

    Raises ConfigError for a model that no architecture of `transformers` can express, with the reason.
    """
    config, tensors = take_apart(FAMILIES, loaded.model, loaded.variables, "hf")
    dtype = jax.tree.leaves(loaded.variables["params"])[0].dtype
    config = _with_kept(config, loaded.source) | {"dtype": str(dtype)}
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, folder)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    FAMILIES[config["architectures"][0]].write_beside(loaded.model, folder)
    if described := loaded.source.get("preprocessor"):
        (folder / PREPROCESSOR).write_text(json.dumps(described, indent=2) + "\n")
    if loaded.texts is not None:
        texts.copy_files(loaded.texts, folder)


def _texts(family: Family, model: nn.Module, folder: Path) -> texts.Rules | None:
    if family.texts is None:
        return None
    tower = getattr(model, "text", model)
    return family.texts(folder, tower.length, tower.vocab_size)


def _image_processor(folder: Path) -> dict[str, Any] | None:
    """Its config, if there is one: a file of its own, or part of the processor's, as `transformers` 5 write it."""
    if (folder / PREPROCESSOR).is_file():
        return read_json(folder / PREPROCESSOR)
    return read_json(folder / PROCESSOR).get("image_processor") if (folder / PROCESSOR).is_file() else None


def _with_kept(config: Json, source: Json) -> dict[str, Any]:
    """The config, with what the weights' own of the same architecture says besides, and the names of its classes."""
    own = source.get("config", {})
    return _merged(own, config) if own.get("architectures") == config["architectures"] else dict(config)


def _merged(own: Json, config: Json) -> dict[str, Any]:
    """Both, also inside (text_config, vision_config); of what both say, ours, but for the names of the classes."""
    merged = {**own, **config}
    for name in own.keys() & config.keys():
        if name in ("id2label", "label2id"):
            merged[name] = own[name]
        elif isinstance(own[name], Mapping) and isinstance(config[name], Mapping):
            merged[name] = _merged(own[name], config[name])
    return merged

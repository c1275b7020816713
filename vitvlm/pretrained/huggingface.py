"""Folders in the Hugging Face format, in and out: config.json, preprocessor_config.json and safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from flax import linen as nn

from vitvlm.core.config import ConfigError, suggest
from vitvlm.pretrained import (
    align,
    bert,
    class_names,
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
    described, where = _image_processor(folder)
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=described and _operations(FAMILIES[name], described, source, where),
        texts=_texts(FAMILIES[name], model, folder),
        source={"path": str(folder), "format": "hf", "model": section, "config": source, "preprocessor": described},
        class_names=class_names.read(source.get("id2label"), getattr(model, "num_classes", 0)),
    )


def save(loaded: Pretrained, folder: Path) -> None:
    """Writes what `from_pretrained` loads: config.json, model.safetensors, the preprocessor's config, by which
    `transformers` makes the pixels that `loaded.preprocessing` makes, and the tokenizer's files.

    A warning tells of preprocessing that no image processor follows, and of what one does a little otherwise.

    Raises ConfigError for a model that no architecture of `transformers` can express, with the reason.
    """
    config, tensors = take_apart(FAMILIES, loaded.model, loaded.variables, "hf")
    dtype = jax.tree.leaves(loaded.variables["params"])[0].dtype
    config = _with_kept(config, loaded.source) | {"dtype": str(dtype)}
    if loaded.class_names is not None:
        config |= class_names.labels(loaded.class_names)
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, folder)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    FAMILIES[config["architectures"][0]].write_beside(loaded.model, folder)
    if described := _described_images(loaded, config):
        (folder / PREPROCESSOR).write_text(json.dumps(described, indent=2) + "\n")
    if loaded.texts is not None:
        texts.copy_files(loaded.texts, folder)


def _operations(family: Family, described: Json, config: Json, where: str) -> str:
    channels = family.inputs(config)[0].shape[-1]  # whoever has a preprocessor sees images
    return preprocessing.operations(described, channels, config, where)


def _described_images(loaded: Pretrained, config: Json) -> dict[str, Any] | None:
    """The preprocessor's config: the one that the weights came with if it is still right, or one for the operations."""
    if loaded.preprocessing is None:
        return None
    family = FAMILIES[config["architectures"][0]]
    if own := loaded.source.get("preprocessor"):
        try:
            if _operations(family, own, config, PREPROCESSOR) == loaded.preprocessing:
                return own
        except WeightsError:
            pass  # it was of another model
    try:
        described, differences = preprocessing.described(loaded.preprocessing, config)
    except ConfigError as error:
        logging.warning("no %s is written for %r: %s", PREPROCESSOR, loaded.preprocessing, error)
        return None
    for difference in differences:
        logging.warning("%s: %s", PREPROCESSOR, difference)
    return described


def _texts(family: Family, model: nn.Module, folder: Path) -> texts.Rules | None:
    if family.texts is None:
        return None
    tower = getattr(model, "text", model)
    return family.texts(folder, tower.length, tower.vocab_size)


def _image_processor(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Its config, if there is one, and where: part of the processor's, as `transformers` 5 write it, or its file."""
    whole = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    if described := whole.get("image_processor"):
        return described, str(folder / PROCESSOR)
    path = folder / PREPROCESSOR
    return read_json(path) if path.is_file() else None, str(path)


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

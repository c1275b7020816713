"""Folders in the Hugging Face format, in and out: config.json, preprocessor_config.json and safetensors."""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vitvlm import models
from vitvlm.core import paths
from vitvlm.core.config import ConfigError, suggest
from vitvlm.models.mae import MAE
from vitvlm.models.vit import ViT
from vitvlm.nn.patches import Pair, as_pair
from vitvlm.nn.stack import stack_blocks, unstack_blocks
from vitvlm.pretrained import mae, preprocessing, vit
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.tables import Facts, Table
from vitvlm.pretrained.tensors import Tensors, WeightsError, open_folder, read_json, write_folder

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """How one architecture of `transformers` maps to a model of ours.

    Fields:
      model: its name for `models.build`.
      fields: config.json and the tensors to the model's fields.
      facts: config.json to what the table's transforms need to know.
      table: config.json, the names of the tensors and the model's positions to the table.
    """

    model: str
    fields: Callable[[Json, Tensors], dict[str, Any]]
    facts: Callable[[Json], Facts]
    table: Callable[[Json, Collection[str], str], Table]


FAMILIES = {
    "ViTForImageClassification": Family("vit", vit.vit_fields, vit.vit_facts, vit.vit_table),
    "ViTModel": Family("vit", vit.encoder_only_fields, vit.vit_facts, vit.encoder_only_table),
    "ViTMAEForPreTraining": Family("mae", mae.mae_fields, mae.mae_facts, mae.mae_table),
}

# From a model and the channels of its images to its config.json.
CONFIGS = {ViT: vit.vit_config, MAE: mae.mae_config}


def load(folder: Path, **fields: Any) -> Pretrained:
    """A model with its weights and preprocessing, everything as the folder's own files say.

    Args:
      fields: fields of the model that leave its parameters as they are: scan, remat, dtype, dropout.

    Raises WeightsError for a folder that is damaged or that we have no table for, listing every tensor that is
    missing, unused or of another shape than the config says; nothing is allocated before that is known.
    """
    source = read_json(folder / CONFIG)
    family = _family(source, folder)
    tensors = open_folder(folder)
    try:
        chosen = {"scan": False} | family.fields(source, tensors) | fields
        facts = family.facts(source)
        table = family.table(source, tensors, chosen.get("positions", "learned"))
        table.check_names(tensors, facts)
        channels = source.get("num_channels", 3)
        looped = models.build(family.model, **chosen | {"scan": False})
        table.check_shapes(tensors.shapes(), _shapes(looped, as_pair(source["image_size"]), channels), facts)
        params = table.read(tensors, facts, jnp.asarray)
    except KeyError as error:
        raise WeightsError(f"{folder / CONFIG}: has no {error}") from None
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{folder}: {error}") from error
    described = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else None
    return Pretrained(
        model=models.build(family.model, **chosen),
        variables={"params": stack_blocks(params) if chosen["scan"] else params},
        preprocessing=described and preprocessing.operations(described, channels),
        tokenizer=None,
        source={"path": str(folder), "format": "hf", "config": source, "preprocessor": described},
    )


def save(loaded: Pretrained, folder: Path) -> None:
    """Writes what `from_pretrained` loads: config.json, model.safetensors and, if it came with one, the preprocessor's.

    Raises ConfigError for a model that no architecture of `transformers` can express, with the reason.
    """
    kind = type(loaded.model)
    if kind not in CONFIGS:
        raise ConfigError(f"format hf: transformers has no architecture for {kind.__name__}")
    params = unstack_blocks(loaded.variables["params"])
    vit_model = loaded.model.vit if isinstance(loaded.model, MAE) else loaded.model
    kernel = paths.flatten(params)[f"{'vit/' * isinstance(loaded.model, MAE)}patches/projection/kernel"]
    config = CONFIGS[kind](loaded.model, kernel.shape[0] // math.prod(as_pair(vit_model.patch_size)))
    config = config | _kept(loaded.source, config) | {"dtype": str(kernel.dtype)}
    family = FAMILIES[config["architectures"][0]]
    names = ("pooler.dense.weight",) if "representation" in params else ()
    tensors = family.table(config, names, vit_model.positions).write(params, family.facts(config))
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, folder)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if described := loaded.source.get("preprocessor"):
        (folder / PREPROCESSOR).write_text(json.dumps(described, indent=2) + "\n")


def _family(source: Json, folder: Path) -> Family:
    """By the architecture that config.json names."""
    name = str((source.get("architectures") or ["none"])[0])
    if name not in FAMILIES:
        raise WeightsError(f"{folder / CONFIG}: architecture {name!r}; {suggest(name, FAMILIES)}")
    return FAMILIES[name]


def _shapes(model: nn.Module, image_size: Pair, channels: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's parameters by path; nothing is allocated."""
    images = jax.ShapeDtypeStruct((1, *image_size, channels), jnp.float32)
    rngs = {name: jax.random.key(0) for name in ("params", "mask")}
    params = jax.eval_shape(model.init, rngs, images)["params"]
    return {path: leaf.shape for path, leaf in paths.flatten(params).items()}


def _kept(source: Json, config: Json) -> dict[str, Any]:
    """What the weights' own config.json of the same architecture says besides, and the names of its classes."""
    own = source.get("config", {})
    if own.get("architectures") != config["architectures"]:
        return {}
    return {name: value for name, value in own.items() if name not in config or name in ("id2label", "label2id")}

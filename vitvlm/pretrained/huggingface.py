"""Folders in the Hugging Face format, in and out: config.json, preprocessor_config.json and safetensors."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from flax import linen as nn

from vitvlm import models
from vitvlm.core.config import ConfigError, suggest
from vitvlm.models.registry import module_fields
from vitvlm.models.two_towers import SHARED
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.pretrained import (
    align,
    bert,
    blip,
    blip2,
    class_names,
    clip,
    config_defaults,
    deit,
    dinov2,
    efficientnet,
    gemma,
    gpt2,
    hub_names,
    idefics,
    idefics3,
    llama,
    llava,
    llava_next,
    mae,
    nanovlm,
    open_flamingo,
    opt,
    paligemma,
    parts,
    phi,
    preprocessing,
    qwen2_vl,
    resnet,
    siglip,
    siglip2,
    swin,
    t5,
    texts,
    vit,
)
from vitvlm.pretrained.entries import Tensors, WeightsError, blamed
from vitvlm.pretrained.families import Family, Json, assemble, expressing, take_apart
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.tables import FEW_TENSORS, Row, Table, is_meaningless, listed
from vitvlm.pretrained.tensors import open_folder, read_json, write_folder
from vitvlm.pretrained.wrappers import unwrap

CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
OF_TRANSFORMERS = ("architectures", "model_type", "dtype")  # entries of a config.json that it reads itself
GENERATION = "generation_config.json"  # which tokens end a text, and how texts are drawn

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
    **siglip2.FAMILIES,
    **bert.FAMILIES,
    **align.FAMILIES,
    **blip.FAMILIES,
    **blip2.FAMILIES,
    **t5.FAMILIES,
    **llama.FAMILIES,
    **gemma.FAMILIES,
    **idefics.FAMILIES,
    **open_flamingo.FAMILIES,
    **phi.FAMILIES,
    **opt.FAMILIES,
    **gpt2.FAMILIES,
    **paligemma.FAMILIES,
    **llava.FAMILIES,
    **llava_next.FAMILIES,
    **idefics3.FAMILIES,
    **nanovlm.FAMILIES,
    **qwen2_vl.FAMILIES,
}


def open(folder: Path, tensors: Tensors | None = None, **fields: Any) -> Pretrained:
    """A model with its weights, preprocessing and tokenizer, everything as the folder's own files say.

    What an old or thin config.json leaves out is what `transformers` takes it for: see `config_defaults`; the log says
    which fields these were. Without `architectures` the `model_type` and the tensors' names decide.

    Args:
      tensors: of another file than the folder's own.
      fields: fields of the model that leave its parameters as they are: scan, remat, dtype, dropout, and a text
        encoder's pool; and fields of config.json, which go before what it says: architectures, model_type, hidden_act.

    Raises WeightsError for a folder that is damaged or that we have no table for, listing every tensor that is
    missing, unused or of another shape than the config says; nothing is allocated before that is known.
    """
    source = read_json(folder / CONFIG)
    source |= {name: fields.pop(name) for name in ("architectures", "model_type") if name in fields}
    with blamed(folder, folder / CONFIG):
        inside = unwrap(open_folder(folder) if tensors is None else tensors, own=own_tops(source))
        found = hub_names.saved(inside.tensors)
        name = _architecture(source, found, folder / CONFIG)
        family = FAMILIES[name]
        own = _config_fields(family, source, fields)
        source = source | {"architectures": [name]} | own
        fields = {field: value for field, value in fields.items() if field not in own}
        fields = family.read_beside(folder, fields) | fields
        tensors = found.renamed(family.rename)
        full = config_defaults.completed(family.model_type, source)
        inputs = family.inputs(full)
        section, model, variables = assemble(family, full, tensors, inputs, fields)
        left_out = sorted((*inside.left_out, *(tensor for tensor in found if family.rename(tensor) is None)))
    inside.say(folder)
    _say(folder, name, config_defaults.defaulted(family.model_type, source), left_out)
    described, where = _image_processor(folder)
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=_preprocessing(family, described, source, where),
        texts=_texts(family, model, folder),
        source={
            "path": str(folder),
            "format": "hf",
            "model": section,
            "config": source,
            "preprocessor": described,
            "generation": read_json(folder / GENERATION) if (folder / GENERATION).is_file() else None,
            "left_out": left_out,
        },
        class_names=class_names.read(source.get("id2label"), model.num_classes),
    )


def _architecture(source: Json, tensors: Tensors, config: Path) -> str:
    """Chooses the architecture that the config names, or the one of its model_type that fits the tensors best.

    Raises WeightsError if we have no table for it, or there is nothing to go by.
    """
    named, model_type = source.get("architectures") or None, source.get("model_type")
    name = named if isinstance(named, str) else str(named[0]) if named else None
    if name in FAMILIES:
        return name
    types = sorted({family.model_type for family in FAMILIES.values()})
    siblings = {each: family for each, family in FAMILIES.items() if family.model_type == model_type}
    if name is None and model_type is None:
        name = next((each for each, family in FAMILIES.items() if family.recognises(source)), None)
        if name is not None:
            return name
    if name is not None:
        hint = suggest(name, siblings) if siblings else f"model_type {model_type!r}; there is: {', '.join(types)}"
        raise WeightsError(f"{config}: architecture {name!r}; {hint}")
    if model_type is None:
        raise WeightsError(
            f"{config}: says neither architectures nor model_type; give it by keyword, model_type= one of "
            f"{', '.join(types)}"
        )
    if not siblings:
        raise WeightsError(f"{config}: model_type {model_type!r}; there is: {', '.join(types)}")
    name = min(siblings, key=lambda each: _misfits(siblings[each], source, tensors))
    logging.warning("%s: names no architecture; by its model_type and the tensors it is a %s", config, name)
    return name


def own_tops(source: Json) -> set[str]:
    """Returns the first parts of names that are a model's own, no wrapper's, of those that the config may mean."""
    named, model_type = source.get("architectures") or (), source.get("model_type")
    return {each.top for name, each in FAMILIES.items() if name in named or each.model_type == model_type}


def _misfits(family: Family, source: Json, found: Tensors) -> float:
    """Counts tensors that the architecture lacks or does not use; infinite if the config does not describe it."""
    tensors = found.renamed(family.rename)
    try:
        full = config_defaults.completed(family.model_type, source)
        model = models.build(family.model, **family.fields(full, tensors))
        rows = Table(family.rows(model, tensors), at_most=2 * len(tensors) + FEW_TENSORS).rows
    except (KeyError, ValueError, TypeError):
        return math.inf
    wanted, there = ({name for name in names if not is_meaningless(name)} for names in (_theirs(rows), tensors))
    return len(wanted ^ there) + len(found) - len(tensors)


def _theirs(rows: Iterable[Row]) -> Iterator[str]:
    for each in rows:
        yield from each.theirs


def _config_fields(family: Family, source: Json, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the requested fields that belong to the config."""
    known = {"num_labels", "id2label"} | source.keys() | config_defaults.DEFAULTS[family.model_type].keys()
    of_model = {*module_fields(family.kind), *SHARED}
    return {name: value for name, value in fields.items() if name in known - of_model}


def _say(folder: Path, name: str, defaulted: Mapping[str, Any], left_out: Sequence[str]) -> None:
    """Logs the fields that were left to defaults and the tensors that were left out."""
    if defaulted:
        told = ", ".join(f"{field}={value!r}" for field, value in sorted(defaulted.items()))
        logging.warning("%s: leaves to the defaults of `transformers`: %s", folder / CONFIG, told)
    if left_out:
        logging.warning("%s: read as a %s, without %d tensors: %s", folder, name, len(left_out), listed(left_out))


def family_of(loaded: Pretrained) -> Family:
    """The architecture of `transformers` that a model is: the one that it was read from, or that can express it.

    Raises ConfigError, with the reasons, where there is none.
    """
    if loaded.source.get("format") == "hf":
        return FAMILIES[loaded.source["config"]["architectures"][0]]
    return expressing(FAMILIES, loaded.model, unstack_blocks(loaded.variables)["params"], "hf")[0]


def save(loaded: Pretrained, folder: Path) -> None:
    """Writes what `from_pretrained` loads: config.json, model.safetensors, the preprocessor's config, by which
    `transformers` makes the pixels that `loaded.preprocessing` makes, the tokenizer's files, and the
    generation_config.json that the weights came with. Of several architectures that can express the model, or the
    language model inside of it, it is written as the one that it came as.

    Warns of preprocessing that no image processor can express, and of small differences.

    Raises ConfigError for a model that no architecture of `transformers` can express, with the reason.
    """
    came_as = loaded.source.get("config", {}).get("architectures") or ()
    own = {name: FAMILIES[name] for name in came_as if name in FAMILIES}
    config, tensors = take_apart({**own, **FAMILIES}, loaded.model, loaded.variables, "hf")
    dtype = jax.tree.leaves(loaded.variables["params"])[0].dtype
    config = parts.text_as_it_came(config, loaded.source.get("config", {}), loaded.model, loaded.variables["params"])
    config = _with_kept(config, loaded.source) | {"dtype": str(dtype)}
    family = FAMILIES[config["architectures"][0]]
    if loaded.class_names is not None:
        config |= class_names.labels(loaded.class_names)
    whole = {name: value for name, value in config.items() if not (family.plain_config and name in OF_TRANSFORMERS)}
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, folder)
    (folder / CONFIG).write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")
    family.write_beside(loaded.model, folder)
    if described := _described_images(loaded, config):
        (folder / PREPROCESSOR).write_text(json.dumps(described, indent=2) + "\n")
    if generation := loaded.source.get("generation"):
        (folder / GENERATION).write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n")
    if loaded.texts is not None:
        texts.copy_files(loaded.texts, folder)


def _preprocessing(family: Family, described: Json | None, config: Json, where: str) -> str | None:
    if described is None and family.own_operations is not None:
        return family.own_operations(config_defaults.completed(family.model_type, config))
    return described and _operations(family, described, config, where)


def _operations(family: Family, described: Json, config: Json, where: str) -> str:
    config = config_defaults.completed(family.model_type, config)
    channels = config.get("vision_config", config).get("num_channels", 3)  # BLIP's configs do not say how many
    return preprocessing.operations(described, channels, config, where)


def _described_images(loaded: Pretrained, config: Json) -> dict[str, Any] | None:
    """The preprocessor's config: the one that the weights came with if it is still right, or one for the operations."""
    if loaded.preprocessing is None:
        return None
    family = FAMILIES[config["architectures"][0]]
    if _preprocessing(family, None, config, CONFIG) == loaded.preprocessing:
        return None  # as config.json alone says
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
    tower = model.text_encoder
    return family.texts(folder, tower.length, tower.vocab_size)


def _image_processor(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Finds the image processor's config, if any, and where: its own file, or part of the processor's (version 5)."""
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
    """Merges both configs, also their inner ones; ours decides where both have a field, but for the class names."""
    merged = {**own, **config}
    for name in own.keys() & config.keys():
        if name in ("id2label", "label2id"):
            merged[name] = own[name]
        elif isinstance(own[name], Mapping) and isinstance(config[name], Mapping):
            merged[name] = _merged(own[name], config[name])
    return merged

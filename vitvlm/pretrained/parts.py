"""Language models and image encoders inside of others' vision-language models, by the `model_type` of their config."""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vitvlm.core.config import ConfigError, suggest
from vitvlm.models.decoder import Decoder
from vitvlm.models.vit import ViT
from vitvlm.nn.patches import Pair, as_pair
from vitvlm.pretrained import clip, gemma, llama, siglip
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, OneOf
from vitvlm.pretrained.families import Family, Inputs, Json
from vitvlm.pretrained.tables import Row, under
from vitvlm.pretrained.vit import without

Move = Callable[[str], str]  # a tensor's name in a language model's own file -> its name in the whole

LANGUAGE_MODELS: Mapping[str, Family] = {
    family.model_type: family
    for family in (llama.LLAMA, llama.MISTRAL, llama.QWEN2, llama.QWEN3, gemma.GEMMA, gemma.GEMMA2, gemma.GEMMA3)
}


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
    """Image encoder of a vision_config.

    Fields:
      fields: the config -> fields of the encoder, its name among them; config: the inverse, from model and parameters.
      rows: of the model; expressible: what the config can say.
    """

    fields: Callable[[Json], dict[str, Any]]
    config: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    rows: Callable[[Any], Iterator[Row]]
    expressible: Expressible


ENCODERS: Mapping[str, ImageEncoder] = {
    "clip_vision_model": ImageEncoder(
        lambda source: {"name": "vit", **clip.vision_fields(source)},
        clip.vision_config,
        clip.vision_rows,
        Expressible("CLIP", ViT, clip.VISION_FIELDS),
    ),
    "siglip_vision_model": ImageEncoder(
        lambda source: {"name": "vit", **siglip.vision_fields(source)},
        siglip.vision_config,
        siglip.vision_rows,
        Expressible("SigLIP", ViT, clip.IMAGE_FIELDS | {"pool": ("map", "gap")}),
    ),
}


def image_and_text(size: int | Pair, channels: int = 3) -> Inputs:
    """Inputs of a vision-language model: one image and one token; its parameters do not depend on how many."""
    image = jax.ShapeDtypeStruct((1, 1, *as_pair(size), channels), jnp.float32)
    return image, jax.ShapeDtypeStruct((1, 1), jnp.int32)


def write_processor(folder: Path, name: str, **settings: Any) -> None:
    """Writes processor_config.json, by which `transformers` puts image tokens into texts."""
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": name, **settings}, indent=2) + "\n")


def described(source: Json) -> Inputs:
    """Inputs of a model whose vision_config gives `image_size` and `num_channels`."""
    vision = source["vision_config"]
    return image_and_text(vision["image_size"], vision["num_channels"])


def image_encoder(source: Json, where: str = "vision_config") -> ImageEncoder:
    """The encoder that a config describes. Raises ConfigError for another `model_type`."""
    return _of_type(ENCODERS, source, where)


def encoder_of(model: Any) -> ImageEncoder:
    """The encoder that a config can describe; the first, if none can."""
    return _first(ENCODERS.values(), model)


def language_fields(source: Json, tensors: Tensors, move: Move) -> dict[str, Any]:
    """Fields of a language model, its name among them, from a text_config. Raises ConfigError for another kind."""
    family = _of_type(LANGUAGE_MODELS, source, "text_config")
    names = {name: move(name) for name in (llama.EMBED, llama.HEAD)}
    own = Tensors({name: tensors.entries[moved] for name, moved in names.items() if moved in tensors.entries})
    return {"name": family.model} | without_how(family.fields(source, own))


def language_rows(model: Decoder, names: Collection[str], move: Move, family: Family | None = None) -> Iterator[Row]:
    """Rows of the language model inside of another, under "text/"."""
    family = family or _first(LANGUAGE_MODELS.values(), model)
    own = {name for name in (llama.EMBED, llama.HEAD) if move(name) in names}
    for row in under("", "text/", family.rows(model, own)):
        yield dataclasses.replace(row, theirs=tuple(map(move, row.theirs)))


def language_config(model: Decoder, params: Mapping[str, Any], family: Family | None = None) -> dict[str, Any]:
    """The text_config of a language model; whether the head is tied, the whole's config says."""
    found = (family or _first(LANGUAGE_MODELS.values(), model)).config(model, params)
    return {name: value for name, value in found.items() if name not in ("architectures", "tie_word_embeddings")}


def text_as_it_came(config: Json, source: Json, model: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a whole, with the text_config's model_type that its weights came with if that says the same model.

    So a Mistral without a window, which computes what a LLaMA does, stays a Mistral.

    Args:
      source: the config that the weights came with.
    """
    came, own = (LANGUAGE_MODELS.get((each.get("text_config") or {}).get("model_type")) for each in (source, config))
    if came is None or own is None or came is own or came.rows is not own.rows:
        return dict(config)
    try:
        came.expressible.check(model.text)
    except ConfigError:
        return dict(config)
    return {**config, "text_config": language_config(model.text, params["text"], came)}


def without_how(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a part, without what says how the whole is computed."""
    return {name: value for name, value in fields.items() if name != "scan"}


def moved(*pairs: tuple[str, str]) -> Move:
    """Replaces the first beginning of a name that fits: moved(("model.", "language_model.model."))."""

    def move(name: str) -> str:
        for old, new in pairs:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return move


def renamed(*pairs: tuple[str, str]) -> Callable[[str], str | None]:
    """A family's `rename`: beginnings of names of other versions, and buffers of rotary positions left out."""
    move, drop = moved(*pairs), without("")
    return lambda name: None if llama.without_buffers(name) is None else drop(move(name))


ANY_LANGUAGE = OneOf.of(*(family.expressible for family in LANGUAGE_MODELS.values()))
ANY_ENCODER = OneOf.of(*(encoder.expressible for encoder in ENCODERS.values()))


def _of_type(known: Mapping[str, Any], source: Json, where: str) -> Any:
    if (kind := source.get("model_type")) not in known:
        raise ConfigError(f"config.json: {where}.model_type {kind!r}; {suggest(str(kind), known)}")
    return known[kind]


def _first(known: Collection[Any], model: Any) -> Any:
    fitting = (each for each in known if not [*each.expressible.problems(model)])
    return next(fitting, next(iter(known)))

"""LLaVA-NeXT weights of Hugging Face `transformers`: LlavaNextForConditionalGeneration."""

import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.vlm import VLM
from vitvlm.pretrained import llava, parts, texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.paligemma import RENAME
from vitvlm.pretrained.tables import Row, row
from vitvlm.pretrained.transforms import token_row


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vlm", ...)` from the config.json of a LlavaNextForConditionalGeneration.

    Those of a LLaVA; its own vector is the newline between rows of tokens. Raises ConfigError for a CLS token among the
    features, which has no place in a grid of tiles.
    """
    found = llava.fields(source, tensors)
    if found["keep_prefix"]:
        raise ConfigError(
            f"config.json: vision_feature_select_strategy {source['vision_feature_select_strategy']!r}: tiles are "
            'joined without CLS, which "default" leaves out of an encoder that has it, and "full" of none'
        )
    return found | {"own_tokens": 1}


def config(model: VLM, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `fields`; the grids of tiles are the published ones unless the weights came with others."""
    named = {"architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next"}
    return {name: value for name, value in llava.config(model, params).items() if name != "image_seq_length"} | named


def rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of a LlavaNextForConditionalGeneration."""
    yield row("image_newline", "own", token_row)
    yield from llava.rows(model, names)


FAMILIES = {
    "LlavaNextForConditionalGeneration": Family(
        "vlm",
        VLM,
        fields,
        rows,
        config,
        "llava_next",
        parts.described,
        rename=RENAME,
        top="model",
        texts=texts.fast,
        write_beside=functools.partial(llava.write_beside, processor="LlavaNextProcessor"),
        expressible=Expressible("LLaVA-NeXT", VLM, llava.EXPRESSED | {"own_tokens": (1,)}),
    )
}

"""Idefics3 and SmolVLM weights of Hugging Face `transformers`: Idefics3- and SmolVLMForConditionalGeneration."""

import functools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitvlm.models.connectors.pixel_shuffle import PixelShuffle
from vitvlm.models.vit import ViT
from vitvlm.models.vlm import VLM
from vitvlm.pretrained import clip, parts, siglip, texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, under
from vitvlm.pretrained.transforms import dense

MOVE = parts.moved(("model.", "model.text_model."))


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vlm", ...)` from the config.json of an Idefics3ForConditionalGeneration.

    Its image encoder is SigLIP's without a head.
    """
    text = {**source["text_config"], "tie_word_embeddings": source["tie_word_embeddings"]}
    return {
        "image": {"name": "vit", **clip.image_fields(source["vision_config"]), "pool": "gap", "position_buckets": True},
        "connector": {"name": "pixel_shuffle", "factor": source["scale_factor"]},
        "text": parts.language_fields(text, tensors, MOVE),
        "image_token": source["image_token_id"],
        "scan": False,
    }


def config(model: VLM, params: Mapping[str, Any], name: str, model_type: str) -> dict[str, Any]:
    """The inverse of `fields`."""
    image = clip.image_config(model.image, params["image"]) | siglip.tanh_name(model.image)
    return {
        "architectures": [name],
        "model_type": model_type,
        "vision_config": image | {"model_type": f"{model_type}_vision"},
        "text_config": parts.language_config(model.text, params["text"]),
        "scale_factor": model.connector.factor,
        "image_token_id": model.image_token,
        "tie_word_embeddings": model.text.tied,
    }


def rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of an Idefics3ForConditionalGeneration."""
    yield from under("model.vision_model.", "image/", siglip.vision_rows(model.image))
    yield from dense("model.connector.modality_projection.proj", "connector/layers_0", bias=False)
    yield from parts.language_rows(model.text, names, MOVE)


def write_beside(model: VLM, folder: Path, name: str) -> None:
    """Writes how many image tokens stand for a tile."""
    h, w = model.image.table_grid
    parts.write_processor(folder, name, image_seq_len=h * w // model.connector.factor**2)


VISION_FIELDS = clip.IMAGE_FIELDS | {"pool": ("gap",), **anything("position_buckets")}


def _family(name: str, model_type: str) -> Family:
    return Family(
        "vlm",
        VLM,
        fields,
        rows,
        functools.partial(config, name=name, model_type=model_type),
        model_type,
        parts.described,
        rename=parts.renamed(),
        top="model",
        texts=texts.fast,
        write_beside=functools.partial(write_beside, name=name.replace("ForConditionalGeneration", "Processor")),
        expressible=Expressible(
            name.removesuffix("ForConditionalGeneration"),
            VLM,
            {
                "image": Expressible("SigLIP", ViT, VISION_FIELDS),
                "connector": Expressible("Idefics3", PixelShuffle, anything("width", "factor")),
                "text": parts.ANY_LANGUAGE,
                "image_token": lambda model: model.image_token is not None,
            },
        ),
    )


FAMILIES = {
    "Idefics3ForConditionalGeneration": _family("Idefics3ForConditionalGeneration", "idefics3"),
    "SmolVLMForConditionalGeneration": _family("SmolVLMForConditionalGeneration", "smolvlm"),
}

"""SigLIP weights of Hugging Face `transformers`, and SigLIP 2's of a fixed resolution, which are the same architecture:
SiglipModel, and its towers alone, SiglipVisionModel, SiglipTextModel and SiglipForImageClassification."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.text import TextTransformer
from vitvlm.models.two_towers import TwoTowers
from vitvlm.models.vit import ViT
from vitvlm.pretrained import texts
from vitvlm.pretrained.clip import (
    IMAGE_FIELDS,
    SEQUENCE_FIELDS,
    described_texts,
    image_config,
    image_fields,
    image_position_rows,
    layer_rows,
    mlp_rows,
    sequence_config,
    sequence_fields,
    text_rows,
    two_towers_inputs,
    vision_inputs,
)
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import conv, dense, layer_norm, qkv, qkv_bias, same, scalar, tokens
from vitvlm.pretrained.vit import labels, num_labels, without


def siglip_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("two_towers", ...)` from the config.json of a SiglipModel."""
    image = vision_fields(source["vision_config"])
    if image["pool"] != "map":
        raise ConfigError("config.json: vision_use_head false: a SiglipModel without its pooling makes no embeddings")
    return {
        "image": {"name": "vit", **image},
        "text": {"name": "text", **text_fields(source["text_config"])},
        "embed_dim": image["width"],
        "image_projection": "none",
        "text_projection": "none",
        "scale_init": 10.0,
        "bias_init": -10.0,
        "scan": False,
    }


def vision_fields(source: Json) -> dict[str, Any]:
    """Fields of SigLIP's image tower: a ViT without CLS that pools by attention or, without that head, the mean."""
    return image_fields(source) | {"pool": "map" if source["vision_use_head"] else "gap"}


def classifier_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("vit", ...)` from the config.json of a SiglipForImageClassification.

    Its head always reads the mean of the patch tokens.
    """
    head = {"num_classes": num_labels(source), "head_input": "mean", "scan": False}
    return vision_fields(source["vision_config"]) | head


def text_fields(source: Json) -> dict[str, Any]:
    """Fields of SigLIP's text tower."""
    projection = source["projection_size"] or source["hidden_size"]
    return sequence_fields(source) | {"causal": False, "pool": "last", "projection": projection}


def siglip_config(model: TwoTowers, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a SiglipModel."""
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": vision_config(model.image, params["image"]),
        "text_config": text_config(model.text),
    }


def vision_model_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a SiglipVisionModel, or of a SiglipForImageClassification."""
    if not model.num_classes:
        return {"architectures": ["SiglipVisionModel"]} | vision_config(model, params)
    return {
        "architectures": ["SiglipForImageClassification"],
        "model_type": "siglip",
        "vision_config": vision_config(model, params),
        **labels(model.num_classes),
    }


def vision_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `vision_fields`."""
    own = {"model_type": "siglip_vision_model", "vision_use_head": model.pool == "map"}
    return image_config(model, params) | own | tanh_name(model)


def text_config(model: TextTransformer) -> dict[str, Any]:
    """The inverse of `text_fields`."""
    own = {"model_type": "siglip_text_model", "projection_size": model.projection}
    return sequence_config(model) | own | tanh_name(model)


def tanh_name(model: ViT | TextTransformer) -> dict[str, str]:
    """Returns `hidden_act` as SigLIP's configs spell the tanh approximation of GELU; nothing for other activations."""
    return {"hidden_act": "gelu_pytorch_tanh"} if model.activation == "gelu_tanh" else {}


def reads_mean(model: ViT) -> bool:
    """Tells whether the head reads the mean of the patch tokens, which is also what is pooled without attention."""
    return model.head_input == "mean" or model.pool == "gap"


def siglip_rows(model: TwoTowers, names: Collection[str]) -> Iterator[Row]:
    """Rows of a SiglipModel."""
    yield row("logit_scale", "log_scale", scalar)
    yield row("logit_bias", "bias", scalar)
    yield from under("vision_model.", "image/", vision_rows(model.image))
    yield from under("text_model.", "text/", headed_text_rows(model.text))


def vision_model_rows(model: ViT, names: Collection[str]) -> Iterator[Row]:
    """SiglipVisionModel and SiglipForImageClassification."""
    yield from under("vision_model." if model.num_classes else "", "", vision_rows(model))
    if model.num_classes:
        yield from dense("classifier", "head")


def vision_rows(model: ViT) -> Iterator[Row]:
    """SigLIP's image tower."""
    yield row("embeddings.patch_embedding.weight", "patches/kernel", conv)
    yield row("embeddings.patch_embedding.bias", "patches/bias", same)
    yield from image_position_rows(model)
    yield from tower_rows(model)


def tower_rows(model: ViT) -> Iterator[Row]:
    """Rows of an image tower after its patch embedding."""
    yield from layer_rows(model.depth)
    yield from layer_norm("post_layernorm", "norm")
    if model.pool == "map":
        yield from under("head.", "pool/", _pooling_rows())


def _pooling_rows() -> Iterator[Row]:
    """Rows of `nn.pooling.MapHead`."""
    projections = ("query", "key", "value")
    yield row("probe", "probe", tokens)
    yield row("attention.in_proj_weight", tuple(f"attention/{name}/kernel" for name in projections), qkv)
    yield row("attention.in_proj_bias", tuple(f"attention/{name}/bias" for name in projections), qkv_bias)
    yield from dense("attention.out_proj", "attention/out")
    yield from layer_norm("layernorm", "mlp_norm")
    yield from mlp_rows("mlp", "mlp")


def headed_text_rows(model: TextTransformer) -> Iterator[Row]:
    """SigLIP's text tower: CLIP's, and a linear head."""
    yield from text_rows(model)
    yield from dense("head", "projection")


TEXT_FIELDS = {
    **SEQUENCE_FIELDS,
    "causal": (False,),
    "pool": ("last",),
    "projection": lambda model: model.projection is not None,
}
FIELDS = {
    "image": Expressible("SigLIP", ViT, IMAGE_FIELDS | {"pool": ("map",)}),
    "text": Expressible("SigLIP", TextTransformer, TEXT_FIELDS),
    # SigLIP's projections are the last layers of its towers; the scale and the bias are only where training begins.
    **anything("embed_dim", "scale_init"),
    "image_projection": ("none",),
    "text_projection": ("none",),
    "bias_init": lambda model: model.bias_init is not None,
}
HEADED_FIELDS = {
    **IMAGE_FIELDS,
    **anything("num_classes"),
    "pool": ("map", "gap"),
    "head_input": lambda model: reads_mean(model) if model.num_classes else model.head_input == "pooled",
}

VISION = Family(
    "vit",
    ViT,
    fields=lambda source, names: vision_fields(source) | {"scan": False},
    rows=vision_model_rows,
    config=vision_model_config,
    model_type="siglip_vision_model",
    rename=without("vision_model."),
    expressible=Expressible("SigLIP", ViT, HEADED_FIELDS),
)
TEXT = Family(
    "text",
    TextTransformer,
    fields=lambda source, names: text_fields(source) | {"scan": False},
    rows=lambda model, names: headed_text_rows(model),
    config=lambda model, params: {"architectures": ["SiglipTextModel"]} | text_config(model),
    model_type="siglip_text_model",
    inputs=described_texts,
    rename=without("text_model."),
    texts=texts.siglip,
    expressible=Expressible("SigLIP", TextTransformer, TEXT_FIELDS),
)
FAMILIES = {
    "SiglipModel": Family(
        "two_towers",
        TwoTowers,
        siglip_fields,
        siglip_rows,
        siglip_config,
        "siglip",
        two_towers_inputs,
        texts=texts.siglip,
        expressible=Expressible("SigLIP", TwoTowers, FIELDS),
    ),
    "SiglipVisionModel": VISION,
    "SiglipForImageClassification": dataclasses.replace(
        VISION, fields=classifier_fields, model_type="siglip", inputs=vision_inputs, rename=without("")
    ),
    "SiglipTextModel": TEXT,
}

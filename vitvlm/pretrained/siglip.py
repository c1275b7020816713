"""SigLIP weights of Hugging Face `transformers`, and SigLIP 2's of a fixed resolution, which are the same architecture:
SiglipModel, and its towers alone, SiglipVisionModel and SiglipTextModel."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.text import TextTransformer
from vitvlm.models.two_towers import TwoTowers
from vitvlm.models.vit import ViT
from vitvlm.pretrained import texts
from vitvlm.pretrained.clip import (
    image_config,
    image_fields,
    image_position_rows,
    layer_rows,
    mlp_rows,
    prefix_of,
    sequence_config,
    sequence_fields,
    text_rows,
    tower,
    two_towers_inputs,
)
from vitvlm.pretrained.families import Family, Inputs, Json, check_expressible, text_inputs
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import conv, dense, layer_norm, qkv, qkv_bias, same, scalar, tokens

# What a config.json that does not say means: the defaults of SiglipVisionConfig and SiglipTextConfig (B/16), which
# Google's files leave out of the towers' own configs.
TOWER_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}
VISION_DEFAULTS = TOWER_DEFAULTS | {"num_channels": 3, "image_size": 224, "patch_size": 16, "vision_use_head": True}
TEXT_DEFAULTS = TOWER_DEFAULTS | {"vocab_size": 32_000, "max_position_embeddings": 64, "projection_size": None}


def siglip_inputs(source: Json) -> Inputs:
    return two_towers_inputs(tower(source, "vision", VISION_DEFAULTS), tower(source, "text", TEXT_DEFAULTS))


def siglip_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("two_towers", ...)` from the config.json of a SiglipModel."""
    image = vision_fields(tower(source, "vision", VISION_DEFAULTS))
    return {
        "image": {"name": "vit", **image},
        "text": {"name": "text", **text_fields(tower(source, "text", TEXT_DEFAULTS))},
        "embed_dim": image["width"],
        "image_projection": "none",
        "text_projection": "none",
        "scale_init": 10.0,
        "bias_init": -10.0,
        "scan": False,
    }


def vision_fields(source: Json) -> dict[str, Any]:
    """Of SigLIP's image tower: a ViT without CLS that pools by attention. Raises ConfigError for one that does not."""
    if not source["vision_use_head"]:
        raise ConfigError("config.json: vision_use_head false: a SigLIP without its pooling is not understood")
    return image_fields(source) | {"pool": "map"}


def text_fields(source: Json) -> dict[str, Any]:
    """Of SigLIP's text tower."""
    projection = source["projection_size"] or source["hidden_size"]
    return sequence_fields(source) | {"causal": False, "pool": "last", "projection": projection}


def siglip_config(model: TwoTowers, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a SiglipModel. Raises ConfigError for what it cannot express."""
    check_expressible(
        {
            "image": isinstance(model.image, ViT),
            "text": isinstance(model.text, TextTransformer),
            "image_projection": model.image_projection == "none",
            "text_projection": model.text_projection == "none",
            "bias_init": model.bias_init is not None,
        },
        model,
        "SigLIP",
    )
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {"model_type": "siglip_vision_model"} | vision_config(model.image, params["image"]),
        "text_config": {"model_type": "siglip_text_model"} | text_config(model.text, params["text"]),
    }


def vision_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `vision_fields`."""
    check_expressible(
        {
            "pool": model.pool == "map",
            "pre_norm": not model.pre_norm,
            "norm_pooled": not model.norm_pooled,
            "patch_bias": model.patch_bias,
        },
        model,
        "SigLIP",
    )
    return image_config(model, params, "SigLIP") | {"vision_use_head": True} | _tanh(model)


def text_config(model: TextTransformer, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `text_fields`."""
    check_expressible(
        {
            "causal": not model.causal,
            "pool": model.pool == "last",
            "norm_pooled": not model.norm_pooled,
            "projection": model.projection is not None,
        },
        model,
        "SigLIP",
    )
    return sequence_config(model, "SigLIP") | {"projection_size": model.projection} | _tanh(model)


def _tanh(model: ViT | TextTransformer) -> dict[str, str]:
    """Of the names of one function, the one that SigLIP's configs use."""
    return {"hidden_act": "gelu_pytorch_tanh"} if model.activation == "gelu_tanh" else {}


def siglip_rows(model: TwoTowers, names: Collection[str]) -> Iterator[Row]:
    """SiglipModel."""
    yield row("logit_scale", "log_scale", scalar)
    yield row("logit_bias", "bias", scalar)
    yield from under("", "image/", vision_rows(model.image, names, "vision_model."))
    yield from under("", "text/", headed_text_rows(model.text, names, "text_model."))


def vision_rows(model: ViT, names: Collection[str], prefix: str) -> Iterator[Row]:
    """SigLIP's image tower; their names begin with the prefix."""
    yield row(f"{prefix}embeddings.patch_embedding.weight", "patches/kernel", conv)
    yield row(f"{prefix}embeddings.patch_embedding.bias", "patches/bias", same)
    yield from under(prefix, "", image_position_rows(model))
    yield from under(prefix, "", layer_rows(model.depth))
    yield from layer_norm(f"{prefix}post_layernorm", "norm")
    yield from under(f"{prefix}head.", "pool/", _pooling_rows())


def _pooling_rows() -> Iterator[Row]:
    """`nn.pooling.MapHead`."""
    projections = ("query", "key", "value")
    yield row("probe", "probe", tokens)
    yield row("attention.in_proj_weight", tuple(f"attention/{name}/kernel" for name in projections), qkv)
    yield row("attention.in_proj_bias", tuple(f"attention/{name}/bias" for name in projections), qkv_bias)
    yield from dense("attention.out_proj", "attention/out")
    yield from layer_norm("layernorm", "mlp_norm")
    yield from mlp_rows("mlp", "mlp")


def headed_text_rows(model: TextTransformer, names: Collection[str], prefix: str) -> Iterator[Row]:
    """SigLIP's text tower: CLIP's, and a linear head."""
    yield from text_rows(model, names, prefix)
    yield from dense(f"{prefix}head", "projection")


SIGLIP_VISION = Family(
    "vit",
    ViT,
    fields=lambda source, names: vision_fields(VISION_DEFAULTS | source) | {"scan": False},
    rows=lambda model, names: vision_rows(model, names, prefix_of(names, "vision_model.")),
    config=lambda model, params: (
        {"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model"} | vision_config(model, params)
    ),
)
SIGLIP_TEXT = Family(
    "text",
    TextTransformer,
    fields=lambda source, names: text_fields(TEXT_DEFAULTS | source) | {"scan": False},
    rows=lambda model, names: headed_text_rows(model, names, prefix_of(names, "text_model.")),
    config=lambda model, params: (
        {"architectures": ["SiglipTextModel"], "model_type": "siglip_text_model"} | text_config(model, params)
    ),
    inputs=lambda source: text_inputs((TEXT_DEFAULTS | source)["max_position_embeddings"]),
    texts=texts.siglip,
)
FAMILIES = {
    "SiglipModel": Family(
        "two_towers", TwoTowers, siglip_fields, siglip_rows, siglip_config, siglip_inputs, texts.siglip
    ),
    "SiglipVisionModel": SIGLIP_VISION,
    "SiglipTextModel": SIGLIP_TEXT,
}

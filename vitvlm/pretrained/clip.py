"""CLIP weights of Hugging Face `transformers`: CLIPModel, and its towers alone: CLIPVisionModel and CLIPTextModel, the
two "WithProjection", whose pooled vector is that of the shared space, and CLIPForImageClassification."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.text import TextTransformer
from vitvlm.models.two_towers import TwoTowers
from vitvlm.models.vit import ViT
from vitvlm.nn.patches import as_pair
from vitvlm.pretrained import texts
from vitvlm.pretrained.families import Family, Inputs, Json, check_expressible, described_images, text_inputs
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import conv, dense, layer_norm, linear, position_embedding, same
from vitvlm.pretrained.vit import activation, labels, num_labels, their_activation, without

# In configs from before `transformers` 4.31 the end of a text is said to be this id, and looked for as the largest.
LEGACY_EOS = 2


def two_towers_inputs(source: Json) -> Inputs:
    return vision_inputs(source) + described_texts(source["text_config"])


def vision_inputs(source: Json) -> Inputs:
    """Inputs of an image classifier, whose config holds those of both towers."""
    return described_images(source["vision_config"])


def described_texts(source: Json) -> Inputs:
    return text_inputs(source["max_position_embeddings"])


def clip_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("two_towers", ...)` from the config.json of a CLIPModel."""
    return {
        "image": {"name": "vit", **vision_fields(source["vision_config"])},
        "text": {"name": "text", **text_fields(source["text_config"])},
        "embed_dim": source["projection_dim"],
        "scale_init": math.exp(source["logit_scale_init_value"]),
        "scan": False,
    }


def vision_fields(source: Json) -> dict[str, Any]:
    """Fields of CLIP's image tower: a ViT with a norm before its blocks, and a last norm on the pooled CLS alone."""
    return image_fields(source) | {"pool": "cls", "pre_norm": True, "norm_pooled": True, "patch_bias": False}


def classifier_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("vit", ...)` from the config.json of a CLIPForImageClassification.

    Its head reads the mean of the patch tokens before the last norm.
    """
    head = {"num_classes": num_labels(source), "head_input": "mean", "scan": False}
    return vision_fields(source["vision_config"]) | head


def text_fields(source: Json) -> dict[str, Any]:
    """Fields of CLIP's text tower."""
    eos = source["eos_token_id"]
    return sequence_fields(source) | {"causal": True, "pool": "eot", "eot_id": None if eos == LEGACY_EOS else eos}


def image_fields(source: Json) -> dict[str, Any]:
    """Fields that CLIP's and SigLIP's image towers share. Both leave out pixels that fill no whole patch."""
    patch, size = source["patch_size"], source["image_size"]
    if not isinstance(patch, int) or not isinstance(size, int):
        raise ConfigError(f"config.json: patch_size {patch}, image_size {size}: `transformers` takes squares only")
    return block_fields(source) | {"patch_size": patch, "image_size": size, "crop": bool(size % patch)}


def sequence_fields(source: Json) -> dict[str, Any]:
    """Fields that CLIP's and SigLIP's text towers share."""
    return block_fields(source) | {"vocab_size": source["vocab_size"], "length": source["max_position_embeddings"]}


def block_fields(source: Json) -> dict[str, Any]:
    """Fields that the image and text towers of CLIP and SigLIP share."""
    return {
        "width": source["hidden_size"],
        "depth": source["num_hidden_layers"],
        "heads": source["num_attention_heads"],
        "mlp_width": source["intermediate_size"],
        "activation": activation(source),
        "norm_eps": source["layer_norm_eps"],
        "attention_dropout": source["attention_dropout"],
    }


def clip_config(model: TwoTowers, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a CLIPModel. Raises ConfigError for a field that it cannot express."""
    check_expressible(
        {
            "image": isinstance(model.image, ViT),
            "text": isinstance(model.text, TextTransformer),
            "image_projection": model.image_projection == "linear",
            "text_projection": model.text_projection == "linear",
            "bias_init": model.bias_init is None,
        },
        model,
        "CLIP",
    )
    projection = {"projection_dim": model.embed_dim}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "vision_config": vision_config(model.image, params["image"]) | projection,
        "text_config": text_config(model.text) | projection,
        **projection,
        "logit_scale_init_value": round(math.log(model.scale_init), 10),  # the inverse of exp but for the last digit
        "vision_config_dict": None,  # of an old file these would go before what is said here
        "text_config_dict": None,
    }


def vision_model_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a CLIPVisionModel, of one with a projection, or of a CLIPForImageClassification."""
    if model.num_classes:
        check_expressible(
            {"head_input": model.head_input == "mean", "projection": model.projection is None}, model, "CLIP"
        )
        headless = model.clone(num_classes=0)
        return {
            "architectures": ["CLIPForImageClassification"],
            "model_type": "clip",
            "vision_config": vision_config(headless, params),
            **labels(model.num_classes),
        }
    if model.projection is None:
        return {"architectures": ["CLIPVisionModel"]} | vision_config(model, params)
    described = vision_config(model.clone(projection=None), params) | {"projection_dim": model.projection}
    return {"architectures": ["CLIPVisionModelWithProjection"]} | described


def vision_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `vision_fields`."""
    check_expressible(
        {
            "pool": model.pool == "cls",
            "pre_norm": model.pre_norm,
            "norm_pooled": model.norm_pooled,
            "patch_bias": not model.patch_bias,
        },
        model,
        "CLIP",
    )
    return image_config(model, params, "CLIP") | {"model_type": "clip_vision_model"}


def text_model_config(model: TextTransformer) -> dict[str, Any]:
    """The config.json of a CLIPTextModel, or of one with a projection."""
    if model.projection is None:
        return {"architectures": ["CLIPTextModel"]} | text_config(model)
    check_expressible({"projection_bias": not model.projection_bias}, model, "CLIP")
    described = text_config(model.clone(projection=None)) | {"projection_dim": model.projection}
    return {"architectures": ["CLIPTextModelWithProjection"]} | described


def text_config(model: TextTransformer) -> dict[str, Any]:
    """The inverse of `text_fields`."""
    check_expressible(
        {
            "causal": model.causal,
            "pool": model.pool == "eot",
            "eot_id": model.eot_id != LEGACY_EOS,
            "norm_pooled": not model.norm_pooled,
            "projection": model.projection is None,
        },
        model,
        "CLIP",
    )
    eos = LEGACY_EOS if model.eot_id is None else model.eot_id
    return sequence_config(model, "CLIP") | {"model_type": "clip_text_model", "eos_token_id": eos}


def image_config(model: ViT, params: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The inverse of `image_fields`."""
    (height, width), (p, q) = as_pair(model.image_size), as_pair(model.patch_size)
    check_expressible(
        {
            "num_classes": not model.num_classes,
            "cls_token": model.has_cls == (model.pool == "cls"),
            "distillation": not model.distillation,
            "positions": model.positions == "learned",
            "position_antialias": not model.position_antialias,
            "position_grid": model.position_grid is None,
            "special_positions": model.special_positions or not model.has_cls,
            "registers": not model.registers,
            "representation_size": model.representation_size is None,
            "projection": model.projection is None,
            "qkv_bias": model.qkv_bias,
            "mlp": model.mlp == "plain",
            "layer_scale": model.layer_scale is None,
            "image_size": height == width,
            "patch_size": p == q,
        },
        model,
        family,
    )
    channels = params["patches"]["kernel"].shape[2]
    return block_config(model, family) | {"patch_size": p, "image_size": height, "num_channels": channels}


def sequence_config(model: TextTransformer, family: str) -> dict[str, Any]:
    """The inverse of `sequence_fields`."""
    return block_config(model, family) | {"vocab_size": model.vocab_size, "max_position_embeddings": model.length}


def block_config(model: ViT | TextTransformer, family: str) -> dict[str, Any]:
    """The inverse of `block_fields`."""
    check_expressible({"dropout": not model.dropout, "drop_path": not model.drop_path}, model, family)
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp_width,
        "hidden_act": their_activation(model.activation),
        "layer_norm_eps": model.norm_eps,
        "attention_dropout": model.attention_dropout,
    }


def clip_rows(model: TwoTowers, names: Collection[str]) -> Iterator[Row]:
    """Rows of a CLIPModel."""
    yield row("logit_scale", "log_scale", same)
    yield row("visual_projection.weight", "project_image/out/kernel", linear)
    yield row("text_projection.weight", "project_text/out/kernel", linear)
    yield from under("vision_model.", "image/", vision_rows(model.image))
    yield from under("text_model.", "text/", text_rows(model.text))


def vision_model_rows(model: ViT, names: Collection[str]) -> Iterator[Row]:
    """CLIPVisionModel, the one with a projection, and CLIPForImageClassification."""
    yield from under("vision_model." if model.num_classes or model.projection else "", "", vision_rows(model))
    if model.projection:
        yield from dense("visual_projection", "projection", bias=False)
    if model.num_classes:
        yield from dense("classifier", "head")


def text_model_rows(model: TextTransformer, names: Collection[str]) -> Iterator[Row]:
    """CLIPTextModel, and the one with a projection."""
    yield from under("text_model." if model.projection else "", "", text_rows(model))
    if model.projection:
        yield from dense("text_projection", "projection", bias=False)


def vision_rows(model: ViT) -> Iterator[Row]:
    """CLIP's image tower."""
    yield row("embeddings.class_embedding", "cls", same)
    yield row("embeddings.patch_embedding.weight", "patches/kernel", conv)
    yield from image_position_rows(model)
    yield from layer_norm("pre_layrnorm", "pre_norm")  # as it is spelt there
    yield from layer_rows(model.depth)
    yield from layer_norm("post_layernorm", "norm")


def text_rows(model: TextTransformer) -> Iterator[Row]:
    """Rows of CLIP's text tower, and of SigLIP's without its head."""
    yield row("embeddings.token_embedding.weight", "embed/embedding", same)
    yield row("embeddings.position_embedding.weight", "positions", same)
    yield from layer_rows(model.depth)
    yield from layer_norm("final_layer_norm", "norm")


def image_position_rows(model: ViT) -> Iterator[Row]:
    ours = tuple(f"positions/{name}" for name in (*model.placed, "grid"))
    transform = position_embedding(model.table_grid, model.placed)
    yield row("embeddings.position_embedding.weight", ours, transform)


def layer_rows(depth: int) -> Iterator[Row]:
    """The blocks of any of the four towers."""
    for i in range(depth):
        yield from under(f"encoder.layers.{i}.", f"blocks_{i}/", _block_rows())


def _block_rows() -> Iterator[Row]:
    yield from layer_norm("layer_norm1", "attention_norm")
    for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out")):
        yield from dense(f"self_attn.{theirs}", f"attention/{ours}")
    yield from layer_norm("layer_norm2", "mlp_norm")
    yield from mlp_rows("mlp", "mlp")


def mlp_rows(theirs: str, ours: str) -> Iterator[Row]:
    yield from dense(f"{theirs}.fc1", f"{ours}/up")
    yield from dense(f"{theirs}.fc2", f"{ours}/down")


def _projected(fields: Callable[[Json], dict[str, Any]], **bias: bool) -> Callable[..., dict[str, Any]]:
    """The fields of a tower whose projection was saved with it."""
    return lambda source, names: fields(source) | {"projection": source["projection_dim"], "scan": False} | bias


# Recent `transformers` write the towers' tensors without a prefix; the hub has one.
VISION = Family(
    "vit",
    ViT,
    fields=lambda source, names: vision_fields(source) | {"scan": False},
    rows=vision_model_rows,
    config=vision_model_config,
    model_type="clip_vision_model",
    rename=without("vision_model."),
)
TEXT = Family(
    "text",
    TextTransformer,
    fields=lambda source, names: text_fields(source) | {"scan": False},
    rows=text_model_rows,
    config=lambda model, params: text_model_config(model),
    model_type="clip_text_model",
    inputs=described_texts,
    rename=without("text_model."),
    texts=texts.clip,
)
FAMILIES = {
    "CLIPModel": Family(
        "two_towers", TwoTowers, clip_fields, clip_rows, clip_config, "clip", two_towers_inputs, texts=texts.clip
    ),
    "CLIPVisionModel": VISION,
    "CLIPVisionModelWithProjection": dataclasses.replace(VISION, fields=_projected(vision_fields), rename=without("")),
    "CLIPForImageClassification": dataclasses.replace(
        VISION, fields=classifier_fields, model_type="clip", inputs=vision_inputs, rename=without("")
    ),
    "CLIPTextModel": TEXT,
    "CLIPTextModelWithProjection": dataclasses.replace(
        TEXT, fields=_projected(text_fields, projection_bias=False), rename=without("")
    ),
}

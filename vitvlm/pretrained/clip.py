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
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Inputs, Json, described_images, text_inputs
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import conv, dense, layer_norm, linear, position_embedding, same
from vitvlm.pretrained.vit import ACTIVATIONS, activation, is_square, labels, num_labels, their_activation, without

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
    """The config.json of a CLIPModel."""
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
        return {
            "architectures": ["CLIPForImageClassification"],
            "model_type": "clip",
            "vision_config": vision_config(model, params),
            **labels(model.num_classes),
        }
    if model.projection is None:
        return {"architectures": ["CLIPVisionModel"]} | vision_config(model, params)
    described = vision_config(model, params) | {"projection_dim": model.projection}
    return {"architectures": ["CLIPVisionModelWithProjection"]} | described


def vision_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `vision_fields`."""
    return image_config(model, params) | {"model_type": "clip_vision_model"}


def text_model_config(model: TextTransformer) -> dict[str, Any]:
    """The config.json of a CLIPTextModel, or of one with a projection."""
    if model.projection is None:
        return {"architectures": ["CLIPTextModel"]} | text_config(model)
    described = text_config(model) | {"projection_dim": model.projection}
    return {"architectures": ["CLIPTextModelWithProjection"]} | described


def text_config(model: TextTransformer) -> dict[str, Any]:
    """The inverse of `text_fields`."""
    eos = LEGACY_EOS if model.eot_id is None else model.eot_id
    return sequence_config(model) | {"model_type": "clip_text_model", "eos_token_id": eos}


def image_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `image_fields`."""
    height, patch = as_pair(model.image_size)[0], as_pair(model.patch_size)[0]
    channels = params["patches"]["kernel"].shape[2]
    return block_config(model) | {"patch_size": patch, "image_size": height, "num_channels": channels}


def sequence_config(model: TextTransformer) -> dict[str, Any]:
    """The inverse of `sequence_fields`."""
    return block_config(model) | {"vocab_size": model.vocab_size, "max_position_embeddings": model.length}


def block_config(model: ViT | TextTransformer) -> dict[str, Any]:
    """The inverse of `block_fields`."""
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


# What the image and text towers of CLIP and SigLIP can say, by themselves or with a head.
BLOCK_FIELDS = {
    **anything("width", "depth", "heads", "mlp_width", "norm_eps", "attention_dropout"),
    "activation": tuple(ACTIVATIONS.values()),
}
IMAGE_FIELDS = {
    **BLOCK_FIELDS,
    "cls_token": lambda model: model.has_cls == (model.pool == "cls"),
    "special_positions": lambda model: model.special_positions or not model.has_cls,
    "image_size": lambda model: is_square(model.image_size),
    "patch_size": lambda model: is_square(model.patch_size),
    # They leave out pixels that fill no whole patch; where there are none, it makes no difference.
    "crop": lambda model: model.crop or not as_pair(model.image_size)[0] % as_pair(model.patch_size)[0],
}
SEQUENCE_FIELDS = {**BLOCK_FIELDS, **anything("vocab_size", "length")}

VISION_FIELDS = {**IMAGE_FIELDS, "pre_norm": (True,), "norm_pooled": (True,), "patch_bias": (False,)}
TEXT_FIELDS = {**SEQUENCE_FIELDS, "eot_id": lambda model: model.eot_id != LEGACY_EOS}
FIELDS = {
    "image": Expressible("CLIP", ViT, VISION_FIELDS),
    "text": Expressible("CLIP", TextTransformer, TEXT_FIELDS),
    **anything("embed_dim", "scale_init"),
}
HEADED_VISION_FIELDS = {
    **VISION_FIELDS,
    **anything("num_classes"),
    "head_input": lambda model: model.head_input == ("mean" if model.num_classes else "pooled"),
    "projection": lambda model: not (model.projection and model.num_classes),
}
HEADED_TEXT_FIELDS = {
    **TEXT_FIELDS,
    **anything("projection"),
    "projection_bias": lambda model: model.projection is None or not model.projection_bias,
}

# Recent `transformers` write the towers' tensors without a prefix; the hub has one.
VISION = Family(
    "vit",
    ViT,
    fields=lambda source, names: vision_fields(source) | {"scan": False},
    rows=vision_model_rows,
    config=vision_model_config,
    model_type="clip_vision_model",
    rename=without("vision_model."),
    expressible=Expressible("CLIP", ViT, HEADED_VISION_FIELDS),
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
    expressible=Expressible("CLIP", TextTransformer, HEADED_TEXT_FIELDS),
)
FAMILIES = {
    "CLIPModel": Family(
        "two_towers",
        TwoTowers,
        clip_fields,
        clip_rows,
        clip_config,
        "clip",
        two_towers_inputs,
        texts=texts.clip,
        expressible=Expressible("CLIP", TwoTowers, FIELDS),
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

"""ViT weights of Hugging Face `transformers`: ViTForImageClassification, ViTModel, and the encoder of
ViTForMaskedImageModeling, which is a ViTModel without its pooler."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.vit import ViT
from vitvlm.nn.patches import Pair, as_pair
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import conv, dense, layer_norm, position_rows, same, token

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
POOLER = "pooler.dense.weight"


# What every config of a ViT says, a square patch or none besides.
COMMON = {
    **anything("width", "depth", "heads", "mlp_width", "image_size", "patch_size", "qkv_bias", "norm_eps"),
    **anything("dropout", "attention_dropout"),
    "activation": tuple(ACTIVATIONS.values()),
    "cls_token": lambda model: model.has_cls,
}
ENCODER_FIELDS = COMMON | {"patch_size": lambda model: is_square(model.patch_size)}
POOLED = (
    ENCODER_FIELDS
    | anything("num_classes")
    | {"representation_size": lambda model: not (model.representation_size and model.num_classes)}
)


def vit_fields(source: Json, tensors: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("vit", ...)` from the config.json of a ViTForImageClassification.

    Raises ConfigError for an activation that we do not have.
    """
    return encoder_fields(source) | {"num_classes": num_labels(source)}


def encoder_only_fields(source: Json, tensors: Collection[str]) -> dict[str, Any]:
    """The same for a ViTModel, with its pooler (a tanh layer on CLS) if it was saved."""
    if POOLER not in tensors:
        return encoder_fields(source)
    if source["pooler_act"] != "tanh":
        raise ConfigError(f"config.json: pooler_act {source['pooler_act']!r}; only tanh is understood")
    return encoder_fields(source) | {"representation_size": source["pooler_output_size"] or source["hidden_size"]}


def encoder_fields(source: Json) -> dict[str, Any]:
    """The fields that a ViT, a DeiT and an MAE's encoder have in common."""
    return common_fields(source) | {"mlp_width": source["intermediate_size"]}


def common_fields(source: Json) -> dict[str, Any]:
    """Fields that every config of a ViT gives by the same names."""
    return {
        "width": source["hidden_size"],
        "depth": source["num_hidden_layers"],
        "heads": source["num_attention_heads"],
        "patch_size": as_pair(source["patch_size"]),
        "image_size": as_pair(source["image_size"]),
        "qkv_bias": source["qkv_bias"],
        "activation": activation(source),
        "norm_eps": source["layer_norm_eps"],
        "dropout": source["hidden_dropout_prob"],
        "attention_dropout": source["attention_probs_dropout_prob"],
        "scan": False,
    }


def activation(source: Json, field: str = "hidden_act") -> str:
    """Our name of their activation. Raises ConfigError for one that we do not have."""
    if source[field] not in ACTIVATIONS:
        raise ConfigError(f"config.json: {field} {source[field]!r}; there is: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[source[field]]


def their_activation(name: str) -> str:
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == name)


def num_labels(source: Json) -> int:
    """Classes: by their names, by their number, or else the two that `transformers` leaves out of config.json."""
    names = source.get("id2label")
    return source.get("num_labels", 2) if names is None else len(names)


def labels(num_classes: int) -> dict[str, Any]:
    """The fields of config.json that name the classes, if there are any."""
    if not num_classes:
        return {}
    names = {str(i): f"LABEL_{i}" for i in range(num_classes)}
    return {"id2label": names, "label2id": {label: int(i) for i, label in names.items()}}


def vit_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a ViTForImageClassification, or of a ViTModel if the model has no classes."""
    return pooled_config(model, params) | {
        "architectures": ["ViTForImageClassification" if model.num_classes else "ViTModel"],
        "model_type": "vit",
    }


def pooled_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """Config entries that a ViT and a DeiT share: the encoder, and the pooler or the classes."""
    return encoder_config(model, params) | {
        "pooler_act": "tanh",
        "pooler_output_size": model.representation_size or model.width,
        **labels(model.num_classes),
    }


def encoder_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """Config entries that a ViT, a DeiT and an MAE's encoder share; the inverse of `encoder_fields`."""
    return common_config(model, params) | {"intermediate_size": model.mlp_width}


def common_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `common_fields`."""
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "patch_size": sides(model.patch_size),
        "image_size": sides(model.image_size),
        "num_channels": params["patches"]["kernel"].shape[2],
        "qkv_bias": model.qkv_bias,
        "hidden_act": their_activation(model.activation),
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
    }


def is_square(size: int | Pair) -> bool:
    return len(set(as_pair(size))) == 1


def sides(size: int | Pair) -> int | list[int]:
    """One number for a square, height and width for any other."""
    h, w = as_pair(size)
    return h if h == w else [h, w]


def block_rows(theirs: str, ours: str, qkv_bias: bool) -> Iterator[Row]:
    """Rows of one block."""
    yield from layer_norm(f"{theirs}.layernorm_before", f"{ours}/attention_norm")
    yield from attention_rows(f"{theirs}.attention", f"{ours}/attention", qkv_bias)
    yield from layer_norm(f"{theirs}.layernorm_after", f"{ours}/mlp_norm")
    yield from dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
    yield from dense(f"{theirs}.output.dense", f"{ours}/mlp/down")


def attention_rows(theirs: str, ours: str, qkv_bias: bool) -> Iterator[Row]:
    for name in ("query", "key", "value"):
        yield from dense(f"{theirs}.attention.{name}", f"{ours}/{name}", qkv_bias)
    yield from dense(f"{theirs}.output.dense", f"{ours}/out")


def encoder_rows(model: ViT) -> Iterator[Row]:
    """A ViT with a CLS token, without a head."""
    yield from embedding_rows(model)
    for i in range(model.depth):
        yield from block_rows(f"encoder.layer.{i}", f"blocks_{i}", model.qkv_bias)
    yield from layer_norm("layernorm", "norm")


def embedding_rows(model: ViT) -> Iterator[Row]:
    """Patches, CLS, the distillation token, and positions: learned, or checked to be the fixed table."""
    yield row("embeddings.cls_token", "cls", token)
    if model.distillation:
        yield row("embeddings.distillation_token", "distillation", token)
    yield from position_rows(
        "embeddings.position_embeddings", model.positions, model.table_grid, model.width, model.placed
    )
    yield row("embeddings.patch_embeddings.projection.weight", "patches/kernel", conv)
    yield row("embeddings.patch_embeddings.projection.bias", "patches/bias", same)


def vit_rows(model: ViT, names: Collection[str]) -> Iterator[Row]:
    """ViTForImageClassification, or ViTModel for a model without classes."""
    yield from under("vit." if model.num_classes else "", "", encoder_rows(model))
    if model.representation_size:
        yield from dense("pooler.dense", "representation")
    if model.num_classes:
        yield from dense("classifier", "head")


def without(prefix: str, *left_out: str) -> Callable[[str], str | None]:
    """A `Family.rename` that takes a prefix off, and then leaves out the names that begin in one of these ways."""

    def rename(name: str) -> str | None:
        name = name.removeprefix(prefix)
        return None if name.startswith(left_out) else name

    return rename


CLASSIFIER = Family("vit", ViT, vit_fields, vit_rows, vit_config, "vit", expressible=Expressible("ViT", ViT, POOLED))
ENCODER = dataclasses.replace(CLASSIFIER, fields=encoder_only_fields, rename=without("vit."))

FAMILIES = {
    "ViTForImageClassification": CLASSIFIER,
    "ViTModel": ENCODER,
    "ViTForMaskedImageModeling": dataclasses.replace(
        ENCODER, rename=without("vit.", "decoder.", "embeddings.mask_token")
    ),
}

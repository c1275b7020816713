"""ViT weights of Hugging Face `transformers`: ViTForImageClassification and ViTModel."""

from collections.abc import Collection, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.vit import ViT
from vitvlm.nn.patches import as_pair, patch_grid
from vitvlm.pretrained.tables import Facts, Row, Table, cls_and_grid, conv_to_patch, linear, row, same, token

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def vit_fields(source: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("vit", ...)` from the config.json of a ViTForImageClassification.

    Raises ConfigError for an activation that we do not have.
    """
    return encoder_fields(source) | {"num_classes": len(source.get("id2label", ("LABEL_0", "LABEL_1")))}


def encoder_only_fields(source: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """The same for a ViTModel, with its pooler (a tanh layer on CLS) if it was saved."""
    if "pooler.dense.weight" not in tensors:
        return encoder_fields(source)
    if source.get("pooler_act", "tanh") != "tanh":
        raise ConfigError(f"config.json: pooler_act {source['pooler_act']!r}; only tanh is understood")
    return encoder_fields(source) | {"representation": source.get("pooler_output_size") or source["hidden_size"]}


def encoder_fields(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a ViT and an MAE's encoder have in common."""
    if source["hidden_act"] not in ACTIVATIONS:
        raise ConfigError(f"config.json: hidden_act {source['hidden_act']!r}; there is: {', '.join(ACTIVATIONS)}")
    return {
        "width": source["hidden_size"],
        "depth": source["num_hidden_layers"],
        "heads": source["num_attention_heads"],
        "mlp_width": source["intermediate_size"],
        "patch_size": as_pair(source["patch_size"]),
        "image_size": as_pair(source["image_size"]),
        "qkv_bias": source["qkv_bias"],
        "activation": ACTIVATIONS[source["hidden_act"]],
        "norm_eps": source["layer_norm_eps"],
        "dropout": source["hidden_dropout_prob"],
        "attention_dropout": source["attention_probs_dropout_prob"],
    }


def vit_config(model: ViT, channels: int) -> dict[str, Any]:
    """The config.json of a ViTForImageClassification, or of a ViTModel if the model has no classes.

    Raises ConfigError that lists the fields which `transformers` has no name for.
    """
    check_expressible(
        {"positions": model.positions == "learned", "representation": not (model.representation and model.num_classes)},
        model,
        "ViT",
    )
    names = {str(i): f"LABEL_{i}" for i in range(model.num_classes)}
    labels = {"id2label": names, "label2id": {label: int(i) for i, label in names.items()}}
    return encoder_config(model, channels) | {
        "architectures": ["ViTForImageClassification" if model.num_classes else "ViTModel"],
        "model_type": "vit",
        "pooler_act": "tanh",
        "pooler_output_size": model.representation or model.width,
        **(labels if model.num_classes else {}),
    }


def encoder_config(model: ViT, channels: int) -> dict[str, Any]:
    """What a ViT and an MAE's encoder say alike; the inverse of `encoder_fields`."""
    check_expressible(
        {
            "pool": model.pool == "cls",
            "registers": not model.registers,
            "layer_scale": model.layer_scale is None,
            "patch_size": len(set(as_pair(model.patch_size))) == 1,
        },
        model,
        "ViT",
    )
    h, w = as_pair(model.image_size)
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp_width,
        "patch_size": as_pair(model.patch_size)[0],
        "image_size": h if h == w else [h, w],
        "num_channels": channels,
        "qkv_bias": model.qkv_bias,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == model.activation),
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
    }


def check_expressible(expressible: Mapping[str, bool], model: Any, family: str) -> None:
    """Raises ConfigError that lists the fields of the model whose value the family of `transformers` does not have."""
    if bad := [f"{name} = {getattr(model, name)!r}" for name, good in expressible.items() if not good]:
        raise ConfigError(f"format hf: transformers' {family} has no {', '.join(bad)}")


def vit_facts(source: Mapping[str, Any]) -> Facts:
    """What the table needs to know: layers `i`, the patch and the grid."""
    patch = as_pair(source["patch_size"])
    return {
        "i": source["num_hidden_layers"],
        "width": source["hidden_size"],
        "patch": patch,
        "grid": patch_grid(as_pair(source["image_size"]), patch),
    }


def dense(theirs: str, ours: str, bias: bool = True) -> tuple[Row, ...]:
    kernel = row(f"{theirs}.weight", f"{ours}/kernel", linear)
    return (kernel, row(f"{theirs}.bias", f"{ours}/bias", same)) if bias else (kernel,)


def norm(theirs: str, ours: str) -> tuple[Row, ...]:
    return row(f"{theirs}.weight", f"{ours}/scale", same), row(f"{theirs}.bias", f"{ours}/bias", same)


def blocks(theirs: str, ours: str, qkv_bias: bool) -> Table:
    """A stack of blocks; `theirs` and `ours` hold the layer's letter."""
    return Table(
        *norm(f"{theirs}.layernorm_before", f"{ours}/attention_norm"),
        *dense(f"{theirs}.attention.attention.query", f"{ours}/attention/query", qkv_bias),
        *dense(f"{theirs}.attention.attention.key", f"{ours}/attention/key", qkv_bias),
        *dense(f"{theirs}.attention.attention.value", f"{ours}/attention/value", qkv_bias),
        *dense(f"{theirs}.attention.output.dense", f"{ours}/attention/out"),
        *norm(f"{theirs}.layernorm_after", f"{ours}/mlp_norm"),
        *dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up"),
        *dense(f"{theirs}.output.dense", f"{ours}/mlp/down"),
    )


def vit_table(source: Mapping[str, Any], names: Collection[str] = (), positions: str = "learned") -> Table:
    """ViTForImageClassification."""
    return encoder("vit.", source["qkv_bias"]) + Table(*dense("classifier", "head"))


def encoder_only_table(source: Mapping[str, Any], names: Collection[str], positions: str = "learned") -> Table:
    """ViTModel; its pooler is a row only if it is there."""
    pooler = dense("pooler.dense", "representation")
    return encoder("", source["qkv_bias"]) + Table(*(pooler if "pooler.dense.weight" in names else ()))


def encoder(prefix: str, qkv_bias: bool) -> Table:
    """A ViT with a CLS token and learned positions, whose tensors' names begin with `prefix`."""
    return (
        Table(
            row(f"{prefix}embeddings.cls_token", "cls", token),
            row(f"{prefix}embeddings.position_embeddings", ("positions/cls", "positions/grid"), cls_and_grid),
            row(f"{prefix}embeddings.patch_embeddings.projection.weight", "patches/projection/kernel", conv_to_patch),
            row(f"{prefix}embeddings.patch_embeddings.projection.bias", "patches/projection/bias", same),
        )
        + blocks(f"{prefix}encoder.layer.{{i}}", "blocks_{i}", qkv_bias)
        + Table(*norm(f"{prefix}layernorm", "norm"))
    )

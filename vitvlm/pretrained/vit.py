"""ViT weights of Hugging Face `transformers`: ViTForImageClassification."""

from collections.abc import Mapping
from typing import Any

from vitvlm.core.config import ConfigError
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


def vit_fields(source: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `models.build("vit", ...)` from the config.json of a ViTForImageClassification.

    Raises ConfigError for an activation that we do not have.
    """
    return encoder_fields(source) | {"num_classes": len(source.get("id2label", ("LABEL_0", "LABEL_1")))}


def encoder_fields(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a ViT and an MAE's encoder have in common."""
    if source["hidden_act"] not in ACTIVATIONS:
        raise ConfigError(f"config.json: hidden_act {source['hidden_act']!r}; there is: {', '.join(ACTIVATIONS)}")
    return {
        "width": source["hidden_size"],
        "depth": source["num_hidden_layers"],
        "heads": source["num_attention_heads"],
        "mlp_width": source["intermediate_size"],
        "patch_size": source["patch_size"],
        "image_size": source["image_size"],
        "qkv_bias": source["qkv_bias"],
        "activation": ACTIVATIONS[source["hidden_act"]],
        "norm_eps": source["layer_norm_eps"],
        "dropout": source["hidden_dropout_prob"],
        "attention_dropout": source["attention_probs_dropout_prob"],
    }


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


def vit_table(source: Mapping[str, Any]) -> Table:
    """ViTForImageClassification."""
    return (
        Table(
            row("vit.embeddings.cls_token", "cls", token),
            row("vit.embeddings.position_embeddings", ("positions/cls", "positions/grid"), cls_and_grid),
            row("vit.embeddings.patch_embeddings.projection.weight", "patches/projection/kernel", conv_to_patch),
            row("vit.embeddings.patch_embeddings.projection.bias", "patches/projection/bias", same),
        )
        + blocks("vit.encoder.layer.{i}", "blocks_{i}", source["qkv_bias"])
        + Table(*norm("vit.layernorm", "norm"), *dense("classifier", "head"))
    )

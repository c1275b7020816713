"""Swin weights of Hugging Face `transformers`: SwinForImageClassification and SwinModel."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.models.swin import Swin
from vitvlm.nn.patches import as_pair, patch_grid
from vitvlm.pretrained.families import Family, Json, check_expressible
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import conv, dense, layer_norm, positions, same
from vitvlm.pretrained.vit import activation, labels, num_labels, sides, their_activation

EMBED_NORM_EPS = 1e-5  # of the norms that their layer_norm_eps does not reach


def encoder_only_fields(source: Json, tensors: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("swin", ...)` from the config.json of a SwinModel.

    Raises ConfigError for an activation that we do not have.
    """
    return {
        "width": source["embed_dim"],
        "depths": tuple(source["depths"]),
        "heads": tuple(source["num_heads"]),
        "window": source["window_size"],
        "mlp_ratio": source["mlp_ratio"],
        "patch_size": as_pair(source["patch_size"]),
        "image_size": as_pair(source["image_size"]),
        "positions": "learned" if source["use_absolute_embeddings"] else "none",
        "qkv_bias": source["qkv_bias"],
        "activation": activation(source),
        "norm_eps": source["layer_norm_eps"],
        "embed_norm_eps": EMBED_NORM_EPS,
        "drop_path": source["drop_path_rate"],
        "dropout": source["hidden_dropout_prob"],
        "attention_dropout": source["attention_probs_dropout_prob"],
    }


def swin_fields(source: Json, tensors: Collection[str]) -> dict[str, Any]:
    """The same for a SwinForImageClassification."""
    return encoder_only_fields(source, tensors) | {"num_classes": num_labels(source)}


def swin_config(model: Swin, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a SwinForImageClassification, or of a SwinModel if the model has no classes.

    Raises ConfigError for what it cannot express.
    """
    check_expressible(
        {
            "positions": model.positions in ("none", "learned"),
            "embed_norm_eps": model.embed_norm_eps == EMBED_NORM_EPS,
            "always_partition": not model.always_partition,
        },
        model,
        "Swin",
    )
    return {
        "architectures": ["SwinForImageClassification" if model.num_classes else "SwinModel"],
        "model_type": "swin",
        "embed_dim": model.width,
        "depths": list(model.depths),
        "num_heads": list(model.heads),
        "window_size": model.window,
        "mlp_ratio": model.mlp_ratio,
        "patch_size": sides(model.patch_size),
        "image_size": sides(model.image_size),
        "num_channels": params["patches"]["kernel"].shape[2],
        "use_absolute_embeddings": model.positions == "learned",
        "qkv_bias": model.qkv_bias,
        "hidden_act": their_activation(model.activation),
        "layer_norm_eps": model.norm_eps,
        "drop_path_rate": model.drop_path,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        **(labels(model.num_classes) if model.num_classes else {}),
    }


def encoder_rows(model: Swin) -> Iterator[Row]:
    """SwinModel. Its merging is at the end of a stage, ours at the start of the next."""
    patch = as_pair(model.patch_size)
    yield row("embeddings.patch_embeddings.projection.weight", "patches/kernel", conv)
    yield row("embeddings.patch_embeddings.projection.bias", "patches/bias", same)
    yield from layer_norm("embeddings.norm", "patches_norm")
    if model.positions == "learned":
        grid = patch_grid(as_pair(model.image_size), patch)
        yield row("embeddings.position_embeddings", "positions/grid", positions(grid))
    for s, depth in enumerate(model.depths):
        if s > 0:
            yield from layer_norm(f"encoder.layers.{s - 1}.downsample.norm", f"stages_{s}/merge/norm")
            yield from dense(f"encoder.layers.{s - 1}.downsample.reduction", f"stages_{s}/merge/reduction", bias=False)
        for i in range(depth):
            theirs, ours = f"encoder.layers.{s}.blocks.{i}", f"stages_{s}/blocks_{i}"
            yield from layer_norm(f"{theirs}.layernorm_before", f"{ours}/attention_norm")
            table = f"{theirs}.attention.self.relative_position_bias_table"
            yield row(table, f"{ours}/attention/relative_positions", same)
            for name in ("query", "key", "value"):
                yield from dense(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}", model.qkv_bias)
            yield from dense(f"{theirs}.attention.output.dense", f"{ours}/attention/out")
            yield from layer_norm(f"{theirs}.layernorm_after", f"{ours}/mlp_norm")
            yield from dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
            yield from dense(f"{theirs}.output.dense", f"{ours}/mlp/down")
    yield from layer_norm("layernorm", "norm")


def swin_rows(model: Swin, names: Collection[str]) -> Iterator[Row]:
    """SwinForImageClassification, or SwinModel for a model without classes."""
    prefix = "swin." if model.num_classes else ""
    yield from under(prefix, "", encoder_rows(model))
    if model.num_classes:
        yield from dense("classifier", "head")


FAMILIES = {
    "SwinForImageClassification": Family("swin", Swin, swin_fields, swin_rows, swin_config),
    "SwinModel": Family("swin", Swin, encoder_only_fields, swin_rows, swin_config),
}

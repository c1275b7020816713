"""Swin weights of Hugging Face `transformers`: SwinForImageClassification, SwinModel, SwinBackbone, and the encoder of
SwinForMaskedImageModeling, which is a SwinModel."""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.swin import Swin
from vitvlm.nn.patches import as_pair
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import conv, dense, layer_norm, positions, same
from vitvlm.pretrained.vit import ACTIVATIONS, activation, labels, num_labels, sides, their_activation, without

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


def backbone_fields(source: Json, tensors: Collection[str]) -> dict[str, Any]:
    """The same for a SwinBackbone: the stages of out_features have norms, and windows are never cut to a small grid.

    Raises ConfigError for the embeddings as a level, which our pyramid does not have.
    """
    named = source.get("out_features") or [f"stage{i}" for i in source.get("out_indices") or [len(source["depths"])]]
    if bad := [name for name in named if not re.fullmatch(r"stage\d+", str(name))]:
        raise ConfigError(f"config.json: out_features {bad[0]!r}: stages alone, such as 'stage1', are levels")
    levels = tuple(int(name.removeprefix("stage")) - 1 for name in named)
    return encoder_only_fields(source, tensors) | {"level_norms": levels, "always_partition": True}


def swin_config(model: Swin, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a SwinForImageClassification, a SwinBackbone for norms of levels, else of a SwinModel."""
    if model.level_norms is None:
        kind = {"architectures": ["SwinForImageClassification" if model.num_classes else "SwinModel"]}
    else:
        places = [level + 1 for level in model.level_norms]
        kind = {
            "architectures": ["SwinBackbone"],
            "out_features": [f"stage{place}" for place in places],
            "out_indices": places,
        }
    return {
        **kind,
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
    yield row("embeddings.patch_embeddings.projection.weight", "patches/kernel", conv)
    yield row("embeddings.patch_embeddings.projection.bias", "patches/bias", same)
    yield from layer_norm("embeddings.norm", "patches_norm")
    if model.positions == "learned":
        yield row("embeddings.position_embeddings", "positions/grid", positions(model.table_grid))
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
    if model.level_norms is None:
        yield from layer_norm("layernorm", "norm")


def swin_rows(model: Swin, names: Collection[str]) -> Iterator[Row]:
    """SwinForImageClassification, or for a model without classes SwinModel or SwinBackbone."""
    yield from under("swin." if model.num_classes else "", "", encoder_rows(model))
    for level in model.level_norms or ():
        yield from layer_norm(f"hidden_states_norms.stage{level + 1}", f"level_norms_{level}")
    if model.num_classes:
        yield from dense("classifier", "head")


FIELDS = {
    **anything("width", "depths", "heads", "window", "mlp_ratio", "patch_size", "image_size", "qkv_bias", "norm_eps"),
    **anything("level_norms", "drop_path", "dropout", "attention_dropout"),
    "activation": tuple(ACTIVATIONS.values()),
    "positions": ("none", "learned"),
    "embed_norm_eps": (EMBED_NORM_EPS,),
    "always_partition": lambda model: model.always_partition == (model.level_norms is not None),
    "num_classes": lambda model: model.level_norms is None or not model.num_classes,
}
CLASSIFIER = Family(
    "swin", Swin, swin_fields, swin_rows, swin_config, "swin", expressible=Expressible("Swin", Swin, FIELDS)
)
ENCODER = dataclasses.replace(CLASSIFIER, fields=encoder_only_fields, rename=without("swin."))

FAMILIES = {
    "SwinForImageClassification": CLASSIFIER,
    "SwinModel": ENCODER,
    # The final norm, which some files hold, is of no use to the levels.
    "SwinBackbone": dataclasses.replace(ENCODER, fields=backbone_fields, rename=without("swin.", "layernorm.")),
    "SwinForMaskedImageModeling": dataclasses.replace(
        ENCODER, rename=without("swin.", "decoder.", "embeddings.mask_token")
    ),
}

"""DINOv2 weights of Hugging Face `transformers`, with and without registers, with classes or without:
Dinov2Model, Dinov2ForImageClassification, Dinov2WithRegistersModel, Dinov2WithRegistersForImageClassification."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.vit import ViT
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, gate_and_up, gate_and_up_bias, layer_norm, same, tokens, unused
from vitvlm.pretrained.vit import (
    COMMON,
    attention_rows,
    common_config,
    common_fields,
    embedding_rows,
    labels,
    num_labels,
)

CLASSIFIER, MASK_TOKEN = "classifier.weight", "embeddings.mask_token"


def dinov2_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("vit", ...)`. The head reads CLS and the mean over patches, one after the other.

    Only the models with registers resample positions with antialias. `drop_path_rate` is every block's there and the
    last block's here.
    """
    registers = source.get("num_register_tokens")  # None: a model without them, whose config has no such field
    classes = num_labels(source) if CLASSIFIER in names else 0
    swiglu = source["use_swiglu_ffn"]
    return common_fields(source) | {
        "mlp": "swiglu" if swiglu else "plain",
        "mlp_width": hidden_width(source["hidden_size"], source["mlp_ratio"], swiglu),
        "layer_scale": source["layerscale_value"],
        "drop_path": source["drop_path_rate"],
        "position_antialias": registers is not None,
        "registers": registers or 0,
        "pool": "cls_and_gap" if classes else "cls",
        "num_classes": classes,
    }


def hidden_width(width: int, mlp_ratio: float, swiglu: bool) -> int:
    """Returns the MLP's hidden width; SwiGLU's is 2/3 of it, rounded up to a multiple of 8."""
    hidden = int(width * mlp_ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden


def dinov2_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of one of the four. Raises ConfigError for an MLP of a width that none has."""
    own = {"num_register_tokens": model.registers} if model.registers else {"use_mask_token": True}
    name = "Dinov2WithRegisters" if model.registers else "Dinov2"
    return (
        common_config(model, params)
        | labels(model.num_classes)
        | {
            "architectures": [name + ("ForImageClassification" if model.num_classes else "Model")],
            "model_type": "dinov2_with_registers" if model.registers else "dinov2",
            "mlp_ratio": _mlp_ratio(model),
            "use_swiglu_ffn": model.mlp == "swiglu",
            "layerscale_value": model.layer_scale,
            "drop_path_rate": model.drop_path,
            **own,
        }
    )


def _mlp_ratio(model: ViT) -> int:
    """The whole number that gives this MLP its hidden width. Raises ConfigError if there is none."""
    for ratio in range(1, 2 * model.mlp_width // model.width + 2):
        if hidden_width(model.width, ratio, model.mlp == "swiglu") == model.mlp_width:
            return ratio
    width = f"mlp_width = {model.mlp_width} at width {model.width}"
    raise ConfigError(f"DINOv2 has no {width}: no whole mlp_ratio gives it")


def dinov2_rows(model: ViT, names: Collection[str]) -> Iterator[Row]:
    """All four. The mask token of their pre-training is read into nothing and written as zeros."""
    prefix = ""
    if model.num_classes:
        prefix = "dinov2_with_registers." if model.registers else "dinov2."
    if not names or prefix + MASK_TOKEN in names:
        yield row(prefix + MASK_TOKEN, (), unused((1, model.width)))
    yield from under(prefix, "", _encoder_rows(model))
    if model.num_classes:
        yield from dense("classifier", "head")


def _encoder_rows(model: ViT) -> Iterator[Row]:
    yield from embedding_rows(model)
    if model.registers:
        yield row("embeddings.register_tokens", "registers", tokens)
    for i in range(model.depth):
        yield from under(f"encoder.layer.{i}.", f"blocks_{i}/", _block_rows(model))
    yield from layer_norm("layernorm", "norm")


def _block_rows(model: ViT) -> Iterator[Row]:
    yield from layer_norm("norm1", "attention_norm")
    yield from attention_rows("attention", "attention", model.qkv_bias)
    yield row("layer_scale1.lambda1", "attention_scale", same)
    yield from layer_norm("norm2", "mlp_norm")
    if model.mlp == "swiglu":
        yield row("mlp.weights_in.weight", ("mlp/gate/kernel", "mlp/up/kernel"), gate_and_up)
        yield row("mlp.weights_in.bias", ("mlp/gate/bias", "mlp/up/bias"), gate_and_up_bias)
        yield from dense("mlp.weights_out", "mlp/down")
    else:
        yield from dense("mlp.fc1", "mlp/up")
        yield from dense("mlp.fc2", "mlp/down")
    yield row("layer_scale2.lambda1", "mlp_scale", same)


FIELDS = (
    COMMON
    | anything("num_classes", "registers", "drop_path")
    | {
        "pool": lambda model: model.pool == ("cls_and_gap" if model.num_classes else "cls"),
        "layer_scale": lambda model: model.layer_scale is not None,
        "mlp": ("plain", "swiglu"),
        "position_antialias": lambda model: model.position_antialias == bool(model.registers),
    }
)
DINOV2 = Family(
    "vit", ViT, dinov2_fields, dinov2_rows, dinov2_config, "dinov2", expressible=Expressible("DINOv2", ViT, FIELDS)
)
WITH_REGISTERS = dataclasses.replace(DINOV2, model_type="dinov2_with_registers")

FAMILIES = {
    "Dinov2Model": DINOV2,
    "Dinov2ForImageClassification": DINOV2,
    "Dinov2WithRegistersModel": WITH_REGISTERS,
    "Dinov2WithRegistersForImageClassification": WITH_REGISTERS,
}

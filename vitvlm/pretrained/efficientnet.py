"""EfficientNet weights of Hugging Face `transformers`: EfficientNetForImageClassification and EfficientNetModel."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.efficientnet import STEM_WIDTH, TOP_WIDTH, EfficientNet
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import conv_norm, dense, pointwise, same
from vitvlm.pretrained.vit import ACTIVATIONS, activation, labels, num_labels, their_activation

POOLS = {"mean": "gap", "max": "max"}


def efficientnet_fields(source: Json, tensors: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("efficientnet", ...)` from the config.json of an EfficientNetForImageClassification."""
    return encoder_fields(source, tensors) | {"num_classes": num_labels(source)}


def encoder_fields(source: Json, tensors: Collection[str]) -> dict[str, Any]:
    """The same for an EfficientNetModel, which has no head.

    Their momentum is TensorFlow's, 0.99 of the old; `transformers` hands it to PyTorch, which keeps 0.01 instead.

    Raises ConfigError for an unknown pooling.
    """
    if source["pooling_type"] not in POOLS:
        raise ConfigError(f"config.json: pooling_type {source['pooling_type']!r}; there is: {', '.join(POOLS)}")
    return {
        "width_factor": source["width_coefficient"],
        "depth_factor": source["depth_coefficient"],
        "width_divisor": source["depth_divisor"],
        "widths": tuple(source["out_channels"]),
        "depths": tuple(source["num_block_repeats"]),
        "kernels": tuple(source["kernel_sizes"]),
        "strides": tuple(source["strides"]),
        "expansions": tuple(source["expand_ratios"]),
        "squeeze_ratio": source["squeeze_expansion_ratio"],
        "symmetric_padding": tuple(source["depthwise_padding"]),
        "pool": POOLS[source["pooling_type"]],
        "activation": activation(source),
        "dropout": source.get("dropout_rate", 0.0),  # of a head, which ALIGN has none of
        "drop_path": source["drop_connect_rate"],
        "norm_eps": source["batch_norm_eps"],
        "norm_momentum": source["batch_norm_momentum"],
    }


def efficientnet_config(model: EfficientNet, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of an EfficientNetForImageClassification, or of an EfficientNetModel without classes."""
    return encoder_config(model, params) | {
        "architectures": ["EfficientNetForImageClassification" if model.num_classes else "EfficientNetModel"],
        "model_type": "efficientnet",
        "hidden_dim": model.scaled_width(TOP_WIDTH),
        "dropout_rate": model.dropout,
        **(labels(model.num_classes) if model.num_classes else {}),
    }


def encoder_config(model: EfficientNet, params: Mapping[str, Any]) -> dict[str, Any]:
    """Config entries of an encoder: the inverse of `encoder_fields`, without the dropout before a head."""
    return {
        "num_channels": params["stem"]["conv"]["kernel"].shape[2],
        "width_coefficient": model.width_factor,
        "depth_coefficient": model.depth_factor,
        "depth_divisor": model.width_divisor,
        "in_channels": [STEM_WIDTH, *model.widths[:-1]],
        "out_channels": list(model.widths),
        "num_block_repeats": list(model.depths),
        "kernel_sizes": list(model.kernels),
        "strides": list(model.strides),
        "expand_ratios": list(model.expansions),
        "squeeze_expansion_ratio": model.squeeze_ratio,
        "depthwise_padding": list(model.symmetric_padding),
        "pooling_type": next(theirs for theirs, ours in POOLS.items() if ours == model.pool),
        "hidden_act": their_activation(model.activation),
        "drop_connect_rate": model.drop_path,
        "batch_norm_eps": model.norm_eps,
        "batch_norm_momentum": model.norm_momentum,
    }


def efficientnet_rows(model: EfficientNet, names: Collection[str]) -> Iterator[Row]:
    """EfficientNetForImageClassification, or EfficientNetModel for a model without classes."""
    yield from under("efficientnet." if model.num_classes else "", "", encoder_rows(model))
    if model.num_classes:
        yield from dense("classifier", "head")


def encoder_rows(model: EfficientNet) -> Iterator[Row]:
    """The stem, the blocks, which they number through all stages, and the last convolution if there is one."""
    yield from conv_norm("embeddings.convolution", "embeddings.batchnorm", "stem")
    number = 0
    for s, (expansion, depth) in enumerate(zip(model.expansions, model.depths)):
        for i in range(model.scaled_depth(depth)):
            theirs, ours = f"encoder.blocks.{number}.", f"stages_{s}/blocks_{i}/"
            yield from under(theirs, ours, block_rows(expands=expansion != 1))
            number += 1
    if model.top:
        yield from conv_norm("encoder.top_conv", "encoder.top_bn", "top")


def block_rows(expands: bool) -> Iterator[Row]:
    if expands:
        yield from conv_norm("expansion.expand_conv", "expansion.expand_bn", "expand")
    yield from conv_norm("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm", "depthwise")
    for theirs, ours in (("reduce", "squeeze"), ("expand", "excite")):  # of one position: 1x1 convolutions there
        yield row(f"squeeze_excite.{theirs}.weight", f"squeeze_excite/{ours}/kernel", pointwise)
        yield row(f"squeeze_excite.{theirs}.bias", f"squeeze_excite/{ours}/bias", same)
    yield from conv_norm("projection.project_conv", "projection.project_bn", "project")


ENCODER_FIELDS = {
    **anything("width_factor", "depth_factor", "width_divisor", "widths", "depths", "kernels", "strides"),
    **anything("expansions", "squeeze_ratio", "symmetric_padding", "drop_path", "norm_eps", "norm_momentum"),
    "pool": tuple(POOLS.values()),
    "activation": tuple(ACTIVATIONS.values()),
}
CLASSIFIER = Family(
    "efficientnet",
    EfficientNet,
    efficientnet_fields,
    efficientnet_rows,
    efficientnet_config,
    "efficientnet",
    expressible=Expressible("EfficientNet", EfficientNet, ENCODER_FIELDS | anything("num_classes", "dropout")),
)
FAMILIES = {
    "EfficientNetForImageClassification": CLASSIFIER,
    "EfficientNetModel": dataclasses.replace(CLASSIFIER, fields=encoder_fields),
}

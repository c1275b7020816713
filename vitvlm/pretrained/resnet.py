"""ResNet weights of Hugging Face `transformers`: ResNetForImageClassification and ResNetModel."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.models.resnet import ResNet
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, under
from vitvlm.pretrained.transforms import conv_norm, dense
from vitvlm.pretrained.vit import ACTIVATIONS, activation, labels, num_labels, their_activation, without

INNER_ACTIVATION = "relu"


def resnet_fields(source: Json, tensors: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("resnet", ...)` from the config.json of a ResNetForImageClassification."""
    return encoder_fields(source, tensors) | {"num_classes": num_labels(source)}


def encoder_fields(source: Json, tensors: Collection[str]) -> dict[str, Any]:
    """The same for a ResNetModel or a ResNetBackbone, which have no head.

    There is always a ReLU between the convolutions of a block, for any hidden_act.
    """
    return {
        "widths": tuple(source["hidden_sizes"]),
        "depths": tuple(source["depths"]),
        "layer": source["layer_type"],
        "stem_width": source["embedding_size"],
        "activation": activation(source),
        "inner_activation": INNER_ACTIVATION,
        "downsample_in_first_stage": source["downsample_in_first_stage"],
        "downsample_in_bottleneck": source["downsample_in_bottleneck"],
    }


def resnet_config(model: ResNet, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a ResNetForImageClassification, or of a ResNetModel if the model has no classes."""
    return {
        "architectures": ["ResNetForImageClassification" if model.num_classes else "ResNetModel"],
        "model_type": "resnet",
        "num_channels": params["stem"]["conv"]["kernel"].shape[2],
        "hidden_sizes": list(model.widths),
        "depths": list(model.depths),
        "layer_type": model.layer,
        "embedding_size": model.stem_width,
        "hidden_act": their_activation(model.activation),
        "downsample_in_first_stage": model.downsample_in_first_stage,
        "downsample_in_bottleneck": model.downsample_in_bottleneck,
        **(labels(model.num_classes) if model.num_classes else {}),
    }


def resnet_rows(model: ResNet, names: Collection[str]) -> Iterator[Row]:
    """ResNetForImageClassification, or ResNetModel for a model without classes."""
    yield from under("resnet." if model.num_classes else "", "", encoder_rows(model))
    if model.num_classes:
        yield from dense("classifier.1", "head")


def encoder_rows(model: ResNet) -> Iterator[Row]:
    """The stem and the blocks."""

    def convolution(theirs: str, ours: str) -> Iterator[Row]:
        return conv_norm(f"{theirs}.convolution", f"{theirs}.normalization", ours)

    yield from convolution("embedder.embedder", "stem")
    for s, i, convs in blocks(model):
        theirs, ours = f"encoder.stages.{s}.layers.{i}", f"stages_{s}/blocks_{i}"
        for j in range(convs):
            yield from convolution(f"{theirs}.layer.{j}", f"{ours}/convs_{j}")
        if model.has_shortcut(s, i):
            yield from convolution(f"{theirs}.shortcut", f"{ours}/shortcut")


def blocks(model: ResNet) -> Iterator[tuple[int, int, int]]:
    """Stage, place in the stage, and number of convolutions of every block."""
    for s, (_, depth) in enumerate(zip(model.widths, model.depths)):
        for i in range(depth):
            yield s, i, 2 if model.layer == "basic" else 3


FIELDS = {
    **anything("widths", "depths", "layer", "stem_width", "num_classes"),
    **anything("downsample_in_first_stage", "downsample_in_bottleneck"),
    "activation": tuple(ACTIVATIONS.values()),
    "inner_activation": lambda model: (model.inner_activation or model.activation) == INNER_ACTIVATION,
}
CLASSIFIER = Family(
    "resnet",
    ResNet,
    resnet_fields,
    resnet_rows,
    resnet_config,
    "resnet",
    expressible=Expressible("ResNet", ResNet, FIELDS),
)
ENCODER = dataclasses.replace(CLASSIFIER, fields=encoder_fields, rename=without("resnet."))

FAMILIES = {"ResNetForImageClassification": CLASSIFIER, "ResNetModel": ENCODER, "ResNetBackbone": ENCODER}

"""ResNet tensors under timm's names, which are torchvision's: resnet18 to resnet152."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.models.resnet import REDUCTION, ResNet
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.resnet import blocks
from vitvlm.pretrained.tables import Row
from vitvlm.pretrained.transforms import conv_norm, dense

STEM_WIDTH = 64  # of every ResNet of timm without a deep stem


def resnet_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("resnet", ...)`; all but the classes are in the tensors' names and shapes."""
    shapes = tensors.shapes()
    bottleneck = "layer1.0.conv3.weight" in shapes
    last = "conv3" if bottleneck else "conv2"
    stages = sorted({name.split(".")[0] for name in shapes if name.startswith("layer")})
    return {
        "layer": "bottleneck" if bottleneck else "basic",
        "widths": tuple(shapes[f"{stage}.0.{last}.weight"][0] for stage in stages),
        "depths": tuple(
            1 + max(int(name.split(".")[1]) for name in shapes if name.startswith(f"{stage}.")) for stage in stages
        ),
        "stem_width": shapes["conv1.weight"][0],
        "num_classes": source["num_classes"],
    }


def resnet_config(model: ResNet, params: Mapping[str, Any]) -> dict[str, Any]:
    """timm's config.json: an architecture's name, and arguments that make it this model."""
    reduction = REDUCTION if model.layer == "bottleneck" else 1
    channels = params["stem"]["conv"]["kernel"].shape[2]
    return {
        "architecture": "resnet50" if model.layer == "bottleneck" else "resnet18",
        "num_classes": model.num_classes,
        "num_features": model.widths[-1],
        "global_pool": "avg",
        "pretrained_cfg": {
            "input_size": [channels, 224, 224],
            "num_classes": model.num_classes,
            "first_conv": "conv1",
            "classifier": "fc",
        },
        "model_args": {
            "layers": list(model.depths),
            "channels": [width // reduction for width in model.widths],
            "in_chans": channels,
        },
    }


def resnet_rows(model: ResNet, names: Collection[str]) -> Iterator[Row]:
    """resnet18 to resnet152."""
    yield from conv_norm("conv1", "bn1", "stem")
    for s, i, convs in blocks(model):
        theirs, ours = f"layer{s + 1}.{i}", f"stages_{s}/blocks_{i}"
        for j in range(convs):
            yield from conv_norm(f"{theirs}.conv{j + 1}", f"{theirs}.bn{j + 1}", f"{ours}/convs_{j}")
        if model.has_shortcut(s, i):
            yield from conv_norm(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut")
    if model.num_classes:
        yield from dense("fc", "head")


FIELDS = anything("widths", "depths", "layer", "num_classes") | {
    "stem_width": (STEM_WIDTH,),
    "inner_activation": (None, "relu"),
}
FAMILIES = {
    "resnet": Family(
        "resnet",
        ResNet,
        resnet_fields,
        resnet_rows,
        resnet_config,
        expressible=Expressible("ResNet", ResNet, FIELDS),
    )
}

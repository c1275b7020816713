"""Layouts of image encoders of `transformers`: small random models of its classes, as `save_pretrained` writes them."""

import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface import array, pixels, randomise, stacked
from layouts import Layout, published
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    EfficientNetModel,
    PreTrainedModel,
    ResNetBackbone,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinForMaskedImageModeling,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
NOISE = np.random.default_rng(1).uniform(size=(2, 9)).astype(np.float32)

# Odd widths, an eps and activations that are no defaults.
BLOCKS = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "layer_norm_eps": 1e-3,
}
VIT = {**BLOCKS, "image_size": 12, "patch_size": 4, "hidden_act": "quick_gelu"}
DINOV2 = {name: value for name, value in VIT.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
MAE = {
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 12,
}
SWIN = {
    "image_size": 12,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [2, 4],
    "window_size": 3,
    "mlp_ratio": 1.5,
    "layer_norm_eps": 1e-3,
    "hidden_act": "relu",
}
RESNET = {"embedding_size": 6, "hidden_sizes": [8, 12], "depths": [1, 2], "layer_type": "basic", "hidden_act": "gelu"}
EFFICIENTNET = {
    "width_coefficient": 0.3,
    "depth_coefficient": 0.6,
    "depth_divisor": 4,
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "kernel_sizes": [3, 5],
    "strides": [1, 2],
    "num_block_repeats": [1, 2],
    "expand_ratios": [1, 4],
    "image_size": 12,
    "batch_norm_eps": 1e-2,
}
CLASSES = {"id2label": {0: "ant", 1: "bee", 2: "cow"}}


def written(theirs: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Made random, and saved."""
    randomise(theirs)
    if hasattr(theirs, "temperature"):
        theirs.temperature.data = theirs.temperature.data.abs()
    theirs.save_pretrained(folder)
    return theirs


def logits(output: Any) -> dict[str, np.ndarray]:
    return {"logits": array(output.logits)}


def pooled(output: Any) -> dict[str, np.ndarray]:
    return {"pooled": array(output.pooler_output).reshape(len(output.pooler_output), -1)}


def image_case(
    name: str,
    make: Callable[[], PreTrainedModel],
    expected: Callable[[Any], dict[str, Any]],
    asked: Mapping[str, Any] = types.MappingProxyType({}),
    named: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    """`asked` of their model, `named` of ours."""

    @published(name)
    def case(folder: Path) -> Layout:
        theirs = written(make(), folder)
        return Layout(folder, (IMAGES,), named, expected(theirs(pixels(IMAGES), **asked)))


image_case("ViTForImageClassification", lambda: ViTForImageClassification(ViTConfig(**VIT, **CLASSES)), logits)
image_case("ViTModel", lambda: ViTModel(ViTConfig(**VIT)), pooled)
image_case("DeiTForImageClassification", lambda: DeiTForImageClassification(DeiTConfig(**VIT, **CLASSES)), logits)
image_case(
    "DeiTForImageClassificationWithTeacher",
    lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(**VIT, **CLASSES)),
    logits,
)
image_case("DeiTModel", lambda: DeiTModel(DeiTConfig(**VIT)), pooled)
image_case("Dinov2Model", lambda: Dinov2Model(Dinov2Config(**DINOV2)), pooled)
image_case(
    "Dinov2ForImageClassification", lambda: Dinov2ForImageClassification(Dinov2Config(**DINOV2, **CLASSES)), logits
)
image_case(
    "Dinov2WithRegistersModel",
    lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=2)),
    pooled,
)
image_case(
    "Dinov2WithRegistersForImageClassification",
    lambda: Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(**DINOV2, **CLASSES)),
    logits,
)
image_case("SwinForImageClassification", lambda: SwinForImageClassification(SwinConfig(**SWIN, **CLASSES)), logits)
image_case("SwinModel", lambda: SwinModel(SwinConfig(**SWIN)), pooled)
image_case(
    "ResNetForImageClassification", lambda: ResNetForImageClassification(ResNetConfig(**RESNET, **CLASSES)), logits
)
image_case("ResNetModel", lambda: ResNetModel(ResNetConfig(**RESNET)), pooled)
image_case(
    "EfficientNetForImageClassification",
    lambda: EfficientNetForImageClassification(EfficientNetConfig(**EFFICIENTNET, hidden_dim=384, **CLASSES)),
    logits,
)
image_case("EfficientNetModel", lambda: EfficientNetModel(EfficientNetConfig(**EFFICIENTNET, hidden_dim=384)), pooled)


@published("ViTMAEForPreTraining")
def mae(folder: Path) -> Layout:
    theirs = written(ViTMAEForPreTraining(ViTMAEConfig(**VIT, **MAE, mask_ratio=0.4)), folder)
    output = theirs(pixels(IMAGES), noise=torch.from_numpy(NOISE))
    return Layout(
        folder, (IMAGES, NOISE), expected={"reconstruction": array(output.logits), "mask": array(output.mask)}
    )


image_case(
    "ViTForMaskedImageModeling",
    lambda: ViTForMaskedImageModeling(ViTConfig(**VIT, encoder_stride=4)),
    lambda output: {"hidden": stacked(output.hidden_states)},
    {"output_hidden_states": True},
    {"capture": ("hidden",)},
)
image_case(
    "SwinForMaskedImageModeling",
    lambda: SwinForMaskedImageModeling(SwinConfig(**SWIN, encoder_stride=4)),
    lambda output: {"pyramid.1": array(output.reshaped_hidden_states[-1]).transpose(0, 2, 3, 1)},
    {"output_hidden_states": True},
)
image_case(
    "SwinBackbone",
    lambda: SwinBackbone(SwinConfig(**SWIN, out_features=["stage1", "stage2"])),
    lambda output: {f"pyramid.{i}": array(x).transpose(0, 2, 3, 1) for i, x in enumerate(output.feature_maps)},
)
image_case(
    "ResNetBackbone",
    lambda: ResNetBackbone(ResNetConfig(**RESNET, out_features=["stage1", "stage2"])),
    lambda output: {f"pyramid.{i}": array(x).transpose(0, 2, 3, 1) for i, x in enumerate(output.feature_maps)},
)

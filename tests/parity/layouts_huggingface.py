"""Layouts of `transformers`: small random models of its classes, as `save_pretrained` writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface import array, pixels, randomise
from layouts import Layout, published
from transformers import (
    AlignConfig,
    AlignModel,
    AlignTextConfig,
    AlignTextModel,
    AlignVisionConfig,
    AlignVisionModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextForImageClassification,
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
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

IMAGES = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
NOISE = np.random.default_rng(1).uniform(size=(2, 9)).astype(np.float32)
TEXTS = np.array([[0, 9, 4, 29, 7, 7, 7], [0, 28, 5, 12, 3, 8, 7]], np.int32)

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
VISION = VIT
TEXT = {**BLOCKS, "vocab_size": 30, "max_position_embeddings": 9, "hidden_act": "gelu"}
CLIP_TEXT = TEXT | {"eos_token_id": 7, "bos_token_id": 0, "pad_token_id": 1}
SIGLIP_TEXT = CLIP_TEXT | {"projection_size": 12}
BERT = TEXT | {"type_vocab_size": 3}
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


def similarity(output: Any) -> dict[str, np.ndarray]:
    return {"logits_per_image": array(output.logits_per_image), "text_embedding": array(output.text_embeds)}


def image_case(name: str, make: Callable[[], PreTrainedModel], expected: Callable[[Any], dict[str, Any]]) -> None:
    @published(name)
    def case(folder: Path) -> Layout:
        theirs = written(make(), folder)
        return Layout(folder, (IMAGES,), expected=expected(theirs(pixels(IMAGES))))


def text_case(name: str, make: Callable[[], PreTrainedModel], expected: Callable[[Any], dict[str, Any]]) -> None:
    @published(name)
    def case(folder: Path) -> Layout:
        theirs = written(make(), folder)
        return Layout(folder, (TEXTS,), expected=expected(theirs(torch.from_numpy(TEXTS).long())))


def pair_case(name: str, make: Callable[[], PreTrainedModel]) -> None:
    @published(name)
    def case(folder: Path) -> Layout:
        theirs = written(make(), folder)
        output = theirs(input_ids=torch.from_numpy(TEXTS).long(), pixel_values=pixels(IMAGES))
        return Layout(folder, (IMAGES, TEXTS), expected=similarity(output))


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


pair_case("CLIPModel", lambda: CLIPModel(CLIPConfig(text_config=CLIP_TEXT, vision_config=VISION, projection_dim=10)))
image_case("CLIPVisionModel", lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)), pooled)
text_case("CLIPTextModel", lambda: CLIPTextModel(CLIPTextConfig(**CLIP_TEXT)), pooled)
pair_case("SiglipModel", lambda: SiglipModel(SiglipConfig(text_config=SIGLIP_TEXT, vision_config=VISION)))
image_case("SiglipVisionModel", lambda: SiglipVisionModel(SiglipVisionConfig(**VISION)), pooled)
text_case("SiglipTextModel", lambda: SiglipTextModel(SiglipTextConfig(**SIGLIP_TEXT)), pooled)
pair_case("AlignModel", lambda: AlignModel(AlignConfig(text_config=BERT, vision_config=EFFICIENTNET, projection_dim=8)))
image_case("AlignVisionModel", lambda: AlignVisionModel(AlignVisionConfig(**EFFICIENTNET)), pooled)
text_case("AlignTextModel", lambda: AlignTextModel(AlignTextConfig(**BERT)), pooled)
text_case("BertModel", lambda: BertModel(BertConfig(**BERT)), pooled)


@published("ConvNextForImageClassification")
def convnext(folder: Path) -> Layout:
    sizes = {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2, "image_size": 12}
    written(ConvNextForImageClassification(ConvNextConfig(**sizes, **CLASSES)), folder)
    return Layout(folder)

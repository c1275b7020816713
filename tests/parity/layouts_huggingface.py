"""Layouts of `transformers`: small random models of its classes, as `save_pretrained` writes them."""

import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface import array, pixels, randomise, stacked
from layouts import Layout, published
from safetensors.numpy import load_file, save_file
from transformers import (
    AlignConfig,
    AlignModel,
    AlignTextConfig,
    AlignTextModel,
    AlignVisionConfig,
    AlignVisionModel,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
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
    ResNetBackbone,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    Siglip2Config,
    Siglip2ForImageClassification,
    Siglip2Model,
    Siglip2TextConfig,
    Siglip2TextModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
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

from vitvlm.nn.patches import Patches
from vitvlm.pretrained.tensors import SINGLE

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


# Patches of images of 2x3, 1x1 and 4x3 patches, in rows of 12.
GRIDS = np.array([[2, 3], [1, 1], [4, 3]], np.int32)
PATCH_MASK = (np.arange(12) < GRIDS.prod(axis=1, keepdims=True)).astype(np.int32)
PATCHES = np.random.default_rng(2).normal(size=(3, 12, 48)).astype(np.float32) * PATCH_MASK[..., None]
NAFLEX_VISION = {name: value for name, value in VISION.items() if name != "image_size"} | {"num_patches": 9}
NAFLEX = {"text_config": SIGLIP_TEXT, "vision_config": NAFLEX_VISION}


def patches_of(theirs: PreTrainedModel, **inputs: Any) -> Any:
    """Returns the reference's output for PATCHES."""
    mask, grids = torch.from_numpy(PATCH_MASK), torch.from_numpy(GRIDS).long()
    pixels = torch.from_numpy(PATCHES)
    return theirs(pixel_values=pixels, pixel_attention_mask=mask, spatial_shapes=grids, **inputs)


def naflex_case(name: str, make: Callable[[], PreTrainedModel], expected: Callable[[Any], dict[str, Any]]) -> None:
    @published(name)
    def case(folder: Path) -> Layout:
        theirs = written(make(), folder)
        return Layout(folder, (Patches(PATCHES, PATCH_MASK, GRIDS),), expected=expected(patches_of(theirs)))


naflex_case("Siglip2VisionModel", lambda: Siglip2VisionModel(Siglip2VisionConfig(**NAFLEX_VISION)), pooled)
naflex_case(
    "Siglip2ForImageClassification", lambda: Siglip2ForImageClassification(Siglip2Config(**NAFLEX, **CLASSES)), logits
)
text_case("Siglip2TextModel", lambda: Siglip2TextModel(Siglip2TextConfig(**SIGLIP_TEXT)), pooled)


@published("Siglip2Model (NaFlex)")
def naflex(folder: Path) -> Layout:
    theirs = written(Siglip2Model(Siglip2Config(**NAFLEX)), folder)
    expected = similarity(patches_of(theirs, input_ids=torch.from_numpy(TEXTS).long()))
    return Layout(folder, (Patches(PATCHES, PATCH_MASK, GRIDS), TEXTS), expected=expected)


def rewrite(folder: Path, tensors: Callable[[dict[str, Any]], dict[str, Any]] = dict, **config: Any) -> None:
    """Changes the tensors, and the fields of config.json; those that are None are taken away."""
    save_file(tensors(load_file(folder / SINGLE)), folder / SINGLE, {"format": "pt"})
    told = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({name: x for name, x in told.items() if x is not None}))


def tokens_mean(output: Any) -> dict[str, np.ndarray]:
    return {"pooled": array(output.last_hidden_state.mean(1))}


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
CLIP = {"text_config": CLIP_TEXT, "vision_config": VISION, "projection_dim": 10}
image_case(
    "CLIPVisionModelWithProjection",
    lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=7)),
    lambda output: {"pooled": array(output.image_embeds)},
)
text_case(
    "CLIPTextModelWithProjection",
    lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_TEXT, projection_dim=7)),
    lambda output: {"pooled": array(output.text_embeds)},
)
image_case("CLIPForImageClassification", lambda: CLIPForImageClassification(CLIPConfig(**CLIP, **CLASSES)), logits)
SIGLIP = {"text_config": SIGLIP_TEXT, "vision_config": VISION}
image_case(
    "SiglipForImageClassification", lambda: SiglipForImageClassification(SiglipConfig(**SIGLIP, **CLASSES)), logits
)
image_case(
    "SiglipVisionModel without its pooling",
    lambda: SiglipVisionModel(SiglipVisionConfig(**VISION, vision_use_head=False)),
    tokens_mean,
)
text_case(
    "BertModel without its pooler",
    lambda: BertModel(BertConfig(**BERT), add_pooling_layer=False),
    lambda output: {"pooled": array(output.last_hidden_state[:, 0])},
)
text_case("BertForMaskedLM", lambda: BertForMaskedLM(BertConfig(**BERT)), logits)


def pretraining(output: Any) -> dict[str, np.ndarray]:
    return {"logits": array(output.prediction_logits)}


text_case("BertForPreTraining", lambda: BertForPreTraining(BertConfig(**BERT)), pretraining)


def of_tensorflow(tensors: dict[str, Any]) -> dict[str, Any]:
    """The names of 2018, the decoder as a copy of the table, and numbers of places."""
    spelt = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, old in spelt.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    return tensors | {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].copy(),
        "bert.embeddings.position_ids": np.arange(9)[None],
    }


@published("BERT of TensorFlow's time (LayerNorm.gamma, a decoder held twice)")
def old_bert(folder: Path) -> Layout:
    theirs = written(BertForPreTraining(BertConfig(**BERT)), folder)
    rewrite(folder, of_tensorflow, architectures=["BertForMaskedLM"])
    return Layout(folder, (TEXTS,), expected=pretraining(theirs(torch.from_numpy(TEXTS).long())))


@published('the same, with architectures="BertModel"')
def old_bert_as_encoder(folder: Path) -> Layout:
    theirs = written(BertForPreTraining(BertConfig(**BERT)), folder)
    rewrite(folder, of_tensorflow, architectures=["BertForMaskedLM"])
    expected = pooled(theirs.bert(torch.from_numpy(TEXTS).long()))
    return Layout(folder, (TEXTS,), expected=expected, fields={"architectures": "BertModel"})


@published("a config.json of model_type and num_labels alone")
def thin_vit(folder: Path) -> Layout:
    """ViT-B but for one layer of it, which has to be said."""
    theirs = written(ViTForImageClassification(ViTConfig(num_hidden_layers=1, image_size=32, num_labels=5)), folder)
    thin = {"model_type": "vit", "num_hidden_layers": 1, "image_size": 32, "num_labels": 5}
    (folder / "config.json").write_text(json.dumps(thin))
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    return Layout(folder, (images,), expected=logits(theirs(pixels(images))))


@published("a config.json without architectures and model_type")
def nothing_to_go_by(folder: Path) -> Layout:
    written(Dinov2Model(Dinov2Config(**DINOV2)), folder)
    rewrite(folder, architectures=None, model_type=None)
    return Layout(folder)


@published('the same, with model_type="dinov2" by keyword')
def by_keyword(folder: Path) -> Layout:
    theirs = written(Dinov2Model(Dinov2Config(**DINOV2)), folder)
    rewrite(folder, architectures=None, model_type=None)
    expected = pooled(theirs(pixels(IMAGES)))
    return Layout(folder, (IMAGES,), expected=expected, fields={"model_type": "dinov2"})


@published("buffers beside the weights (position_ids, relative_position_index, no num_batches_tracked)")
def buffers(folder: Path) -> Layout:
    theirs = written(SwinModel(SwinConfig(**SWIN)), folder)
    index = "encoder.layers.0.blocks.0.attention.self.relative_position_index"
    rewrite(folder, lambda tensors: tensors | {index: np.zeros((9, 9), np.int64), "attn_mask": np.zeros((1, 9, 9))})
    return Layout(folder, (IMAGES,), expected=pooled(theirs(pixels(IMAGES))))


@published("ConvNextForImageClassification")
def convnext(folder: Path) -> Layout:
    sizes = {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2, "image_size": 12}
    written(ConvNextForImageClassification(ConvNextConfig(**sizes, **CLASSES)), folder)
    return Layout(folder)

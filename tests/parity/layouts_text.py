"""Layouts of `transformers` with a text tower: small random pairs of towers, text encoders and NaFlex."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface import array, pixels
from layouts import Layout, published
from layouts_huggingface import BLOCKS, CLASSES, EFFICIENTNET, IMAGES, VIT, image_case, logits, pooled, written
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
    PreTrainedModel,
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
)

from vitvlm.nn.patches import Patches

TEXTS = np.array([[0, 9, 4, 29, 7, 7, 7], [0, 28, 5, 12, 3, 8, 7]], np.int32)

VISION = VIT
TEXT = {**BLOCKS, "vocab_size": 30, "max_position_embeddings": 9, "hidden_act": "gelu"}
CLIP_TEXT = TEXT | {"eos_token_id": 7, "bos_token_id": 0, "pad_token_id": 1}
SIGLIP_TEXT = CLIP_TEXT | {"projection_size": 12}
BERT = TEXT | {"type_vocab_size": 3}


def similarity(output: Any) -> dict[str, np.ndarray]:
    return {"logits_per_image": array(output.logits_per_image), "text_embedding": array(output.text_embeds)}


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


def tokens_mean(output: Any) -> dict[str, np.ndarray]:
    return {"pooled": array(output.last_hidden_state.mean(1))}


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

"""Layouts of BLIP in `transformers`: small random models."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface import array, pixels
from layouts import Layout, published
from layouts_configs import rewrite
from layouts_huggingface import IMAGES, written
from layouts_text import TEXTS
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipModel,
)

BLOCKS = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
TEXT = {**BLOCKS, "vocab_size": 30, "max_position_embeddings": 9, "bos_token_id": 29, "sep_token_id": 5}
ANSWERS = TEXTS[:, :4]


def config() -> BlipConfig:
    side = IMAGES.shape[1]
    vision = {**BLOCKS, "image_size": side, "patch_size": side // 2}
    return BlipConfig(vision_config=vision, text_config=TEXT, image_text_hidden_size=6)


def asked() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.from_numpy(TEXTS).long(), "pixel_values": pixels(IMAGES)}


@published("BlipForConditionalGeneration")
def captioner(folder: Path) -> Layout:
    theirs = written(BlipForConditionalGeneration(config()), folder)
    return Layout(folder, (IMAGES, TEXTS), expected={"logits": array(theirs(**asked()).logits)})


@published("BlipForQuestionAnswering")
def vqa(folder: Path) -> Layout:
    theirs = written(BlipForQuestionAnswering(config()), folder)
    found = {}
    theirs.text_decoder.register_forward_hook(lambda module, given, out: found.update(logits=array(out.logits)))
    theirs(**asked(), decoder_input_ids=torch.from_numpy(ANSWERS).long())
    return Layout(folder, (IMAGES, TEXTS), {"decoder_tokens": ANSWERS}, found)


@published("BlipForImageTextRetrieval")
def retrieval(folder: Path) -> Layout:
    theirs = written(BlipForImageTextRetrieval(config()), folder)
    cosines = array(theirs(**asked(), use_itm_head=False).itm_score)
    expected = {"match_logits": array(theirs(**asked()).itm_score), "logits_per_image": cosines}
    return Layout(folder, (IMAGES, TEXTS), expected=expected)


@published("BLIP of 2022 (poolers that nothing reads, the table of tokens and a bias held twice, position_ids)")
def old(folder: Path) -> Layout:
    layout = vqa(folder)

    def of_old(tensors: dict[str, Any]) -> dict[str, Any]:
        head, table = "text_decoder.cls.predictions", "text_decoder.bert.embeddings.word_embeddings.weight"
        bias = tensors[f"{head}.bias"]
        sides = ("text_encoder", "text_decoder.bert")
        return tensors | {
            f"{head}.decoder.weight": tensors[table].copy(),
            f"{head}.decoder.bias": bias.copy(),
            **{f"{side}.embeddings.position_ids": np.arange(9)[None] for side in sides},
            "text_encoder.pooler.dense.weight": np.ones((12, 12), "f4"),
            "text_encoder.pooler.dense.bias": np.ones(12, "f4"),
        }

    rewrite(folder, of_old)
    return layout


@published("BlipModel")
def towers(folder: Path) -> Layout:
    written(BlipModel(config()), folder)
    return Layout(folder)

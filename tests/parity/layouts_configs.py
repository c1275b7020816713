"""Layouts of `transformers` whose config.json or names of tensors are old, thin, wrong or of an unknown model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface import pixels
from layouts import Layout, published
from layouts_huggingface import CLASSES, DINOV2, IMAGES, SWIN, logits, pooled, written
from layouts_text import BERT, TEXTS, pretraining
from safetensors.numpy import load_file, save_file
from transformers import (
    BertConfig,
    BertForPreTraining,
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
)

from vitvlm.pretrained.tensors import SINGLE


def rewrite(folder: Path, tensors: Callable[[dict[str, Any]], dict[str, Any]] = dict, **config: Any) -> None:
    """Changes the tensors, and the fields of config.json; those that are None are taken away."""
    save_file(tensors(load_file(folder / SINGLE)), folder / SINGLE, {"format": "pt"})
    told = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({name: x for name, x in told.items() if x is not None}))


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

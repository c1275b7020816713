"""Layouts of `transformers`' language models: small random ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface import array
from layouts import Layout, published
from layouts_configs import rewrite
from layouts_huggingface import written
from layouts_text import TEXTS
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

DECODER = TEXTS[:, :4]
T5 = {
    "vocab_size": 30,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 20,
    "num_layers": 1,
    "num_heads": 3,
    "relative_attention_num_buckets": 6,
    "relative_attention_max_distance": 9,
    "layer_norm_epsilon": 1e-3,
    "decoder_start_token_id": 0,
}
OWN_HEAD = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 2}


def t5_case(name: str, make: Callable[[], PreTrainedModel], own_head: bool = False) -> None:
    @published(name)
    def case(folder: Path) -> Layout:
        return t5_layout(make(), folder, own_head)


def t5_layout(theirs: PreTrainedModel, folder: Path, own_head: bool = False) -> Layout:
    if own_head:
        theirs.lm_head.weight = torch.nn.Parameter(torch.zeros(30, 12))
    written(theirs, folder)
    out = theirs(input_ids=torch.from_numpy(TEXTS).long(), decoder_input_ids=torch.from_numpy(DECODER).long())
    named: Mapping[str, Any] = {"decoder_tokens": DECODER}
    return Layout(folder, (TEXTS,), named, {"logits": array(out.logits)})


t5_case("T5ForConditionalGeneration", lambda: T5ForConditionalGeneration(T5Config(**T5)))
t5_case(
    "Flan-T5 (T5ForConditionalGeneration with a gated MLP and a head of its own)",
    lambda: T5ForConditionalGeneration(T5Config(**T5 | OWN_HEAD)),
    own_head=True,
)
t5_case("MT5ForConditionalGeneration", lambda: MT5ForConditionalGeneration(MT5Config(**T5)))


def of_2020(tensors: dict[str, Any]) -> dict[str, Any]:
    """The table under all its names, and positions of the cross-attention, which has none."""
    names = ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens")
    idle = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    copies = {f"{name}.weight": tensors["shared.weight"].copy() for name in names}
    return tensors | copies | {idle: np.zeros((6, 3), np.float32)}


@published("T5 of 2020 (the table of tokens held four times, tie_word_embeddings or nothing about scaling)")
def old_t5(folder: Path) -> Layout:
    layout = t5_layout(T5ForConditionalGeneration(T5Config(**T5)), folder)
    said = ("scale_decoder_outputs", "tie_word_embeddings", "is_gated_act", "dense_act_fn", "num_decoder_layers")
    rewrite(folder, of_2020, **dict.fromkeys(said))
    return layout


@published("T5EncoderModel")
def t5_encoder(folder: Path) -> Layout:
    written(T5EncoderModel(T5Config(**T5)), folder)
    return Layout(folder)

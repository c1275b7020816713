"""Layouts of `transformers`' language models: small random ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import decoders
import numpy as np
import torch
from huggingface import array
from layouts import Layout, published
from layouts_configs import rewrite
from layouts_huggingface import written
from layouts_text import BERT, TEXTS
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaModel,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

CONTEXT = np.random.default_rng(3).normal(size=(2, 5, 12)).astype(np.float32)
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


@published("BertLMHeadModel")
def bert_decoder(folder: Path) -> Layout:
    theirs = written(BertLMHeadModel(BertConfig(**BERT, is_decoder=True)), folder)
    return Layout(folder, (TEXTS,), expected={"logits": array(theirs(torch.from_numpy(TEXTS).long()).logits)})


@published("the same, with cross-attention")
def bert_decoder_of_context(folder: Path) -> Layout:
    config = BertConfig(**BERT, is_decoder=True, add_cross_attention=True)
    theirs = written(BertLMHeadModel(config), folder)
    out = theirs(torch.from_numpy(TEXTS).long(), encoder_hidden_states=torch.from_numpy(CONTEXT))
    return Layout(folder, (TEXTS,), {"context": CONTEXT}, {"logits": array(out.logits)})


@published("BertLMHeadModel that looks both ways")
def bert_no_decoder(folder: Path) -> Layout:
    written(BertLMHeadModel(BertConfig(**BERT)), folder)
    return Layout(folder)


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


def decoder_layout(config: Any, folder: Path) -> Layout:
    theirs = written(decoders.build(config), folder)
    return Layout(folder, (TEXTS,), expected={"logits": array(theirs(torch.from_numpy(TEXTS).long()).logits)})


def decoder_case(name: str, make: Callable[[], Any]) -> None:
    @published(name)
    def case(folder: Path) -> Layout:
        return decoder_layout(make(), folder)


for each, make in decoders.CONFIGS.items():
    decoder_case(each, make)
for each, fields in decoders.SCALINGS.items():
    decoder_case(f"LlamaForCausalLM, positions scaled: {each}", lambda fields=fields: decoders.llama(**fields))


@published("LLaMA of 2023 (rope_theta and rope_scaling, frequencies of rotary positions in the file)")
def old_llama(folder: Path) -> Layout:
    layout = decoder_layout(decoders.llama(**decoders.SCALINGS["linear"]), folder)
    frequencies = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32) for i in range(3)}
    old = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.5}}
    rewrite(folder, lambda tensors: tensors | frequencies, **old, rope_parameters=None)
    return layout


@published("Gemma 3 of early 2025 (rope_local_base_freq and sliding_window_pattern)")
def old_gemma3(folder: Path) -> Layout:
    config = decoders.CONFIGS["Gemma3ForCausalLM"]()
    config.layer_types = ["sliding_attention", "sliding_attention", "full_attention"]
    layout = decoder_layout(config, folder)
    old = {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 50.0}
    rewrite(folder, **old, sliding_window_pattern=3, layer_types=None, rope_parameters=None)
    return layout


@published("GPT-2 of 2019 (names without transformer., causality as a mask)")
def old_gpt2(folder: Path) -> Layout:
    layout = decoder_layout(decoders.CONFIGS["GPT2LMHeadModel"](), folder)
    masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 32, 32), np.float32)) for i in range(3)}
    rewrite(folder, lambda tensors: {k.removeprefix("transformer."): v for k, v in tensors.items()} | masks)
    return layout


@published("a head that is the table of tokens, held twice")
def tied_twice(folder: Path) -> Layout:
    layout = decoder_layout(decoders.llama(tie_word_embeddings=True), folder)
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()})
    return layout


@published("a head of its own, though tie_word_embeddings says otherwise")
def not_tied(folder: Path) -> Layout:
    layout = decoder_layout(decoders.llama(), folder)
    rewrite(folder, tie_word_embeddings=True)
    return layout


@published("LlamaModel")
def no_head(folder: Path) -> Layout:
    written(LlamaModel(decoders.llama()), folder)
    return Layout(folder)


@published("LLaMA with LongRoPE")
def long_rope(folder: Path) -> Layout:
    layout = decoder_layout(decoders.llama(), folder)
    rewrite(folder, rope_parameters={"rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0] * 3})
    return layout


@published("GPT-2 whose scores are scaled by the layer's number")
def scaled_by_layer(folder: Path) -> Layout:
    layout = decoder_layout(decoders.CONFIGS["GPT2LMHeadModel"](), folder)
    rewrite(folder, scale_attn_by_inverse_layer_idx=True)
    return layout

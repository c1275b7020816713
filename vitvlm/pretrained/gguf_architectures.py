"""Architectures of llama.cpp that are read from GGUF files, each as the one of `transformers` that it is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vitvlm.pretrained.gguf_translation import (
    Architecture,
    Change,
    Metadata,
    halves,
    head_dim,
    kv_heads,
    minus_one,
    rope_scaling,
    transposed,
)

GEMMA2_27B, GEMMA3_27B = 46, 62  # blocks: these scale scores by their width and heads, the others by the head's width
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def sizes(metadata: Metadata) -> dict[str, Any]:
    """The entries of config.json that LLaMA and all its kin have."""
    theta = metadata("rope.freq_base", 10_000.0)
    rotated = metadata("rope.dimension_count", head_dim(metadata))
    return {
        "hidden_size": metadata("embedding_length"),
        "num_hidden_layers": metadata("block_count"),
        "num_attention_heads": metadata("attention.head_count"),
        "num_key_value_heads": kv_heads(metadata),
        "head_dim": head_dim(metadata),
        "intermediate_size": metadata("feed_forward_length"),
        "vocab_size": vocab_size(metadata),
        "max_position_embeddings": metadata("context_length"),
        "rope_theta": theta,
        "rope_scaling": rope_scaling(metadata, theta, rotated),
        "partial_rotary_factor": rotated / head_dim(metadata),
        "tie_word_embeddings": "output.weight" not in metadata.tensors,
    }


def vocab_size(metadata: Metadata) -> int:
    return metadata.tensors.shapes()["token_embd.weight"][0]


def rms(metadata: Metadata) -> dict[str, Any]:
    return sizes(metadata) | {"rms_norm_eps": metadata("attention.layer_norm_rms_epsilon")}


def llama(metadata: Metadata) -> dict[str, Any]:
    """A LlamaForCausalLM."""
    return rms(metadata) | {
        "model_type": "llama",
        "attention_bias": "blk.0.attn_q.bias" in metadata.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in metadata.tensors,
        "hidden_act": "silu",
    }


def mistral(metadata: Metadata) -> dict[str, Any]:
    """A MistralForCausalLM: llama.cpp's "llama" with a window."""
    return rms(metadata) | {
        "model_type": "mistral",
        "hidden_act": "silu",
        "sliding_window": metadata("attention.sliding_window"),
    }


def qwen2(metadata: Metadata) -> dict[str, Any]:
    return rms(metadata) | {"model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": False}


def qwen3(metadata: Metadata) -> dict[str, Any]:
    bias = "blk.0.attn_q.bias" in metadata.tensors
    return qwen2(metadata) | {"model_type": "qwen3", "attention_bias": bias}


def gemma(metadata: Metadata) -> dict[str, Any]:
    return rms(metadata) | {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh", "attention_bias": False}


def gemma2(metadata: Metadata) -> dict[str, Any]:
    return rms(metadata) | {
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": _scalar(metadata, GEMMA2_27B),
        "sliding_window": metadata("attention.sliding_window", 4096),
        "attn_logit_softcapping": metadata("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata("final_logit_softcapping", 30.0),
    }


def gemma3(metadata: Metadata) -> dict[str, Any]:
    """The texts' part of Gemma 3, of whose layers every sixth is global."""
    return gemma2(metadata) | {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": _scalar(metadata, GEMMA3_27B),
        "sliding_window": metadata("attention.sliding_window"),
        "sliding_window_pattern": metadata("attention.sliding_window_pattern", 6),
        "rope_theta": metadata("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": metadata("rope.freq_base_swa", 10_000.0),
        "attn_logit_softcapping": metadata("attn_logit_softcapping", None),
        "final_logit_softcapping": metadata("final_logit_softcapping", None),
    }


def _scalar(metadata: Metadata, largest: int) -> int:
    if metadata("block_count") == largest:
        return metadata("embedding_length") // metadata("attention.head_count")
    return head_dim(metadata)


def phi2(metadata: Metadata) -> dict[str, Any]:
    return sizes(metadata) | {
        "model_type": "phi",
        "hidden_act": "gelu_new",
        "layer_norm_eps": metadata("attention.layer_norm_epsilon"),
    }


def gpt2(metadata: Metadata) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": metadata("embedding_length"),
        "n_layer": metadata("block_count"),
        "n_head": metadata("attention.head_count"),
        "n_inner": metadata("feed_forward_length"),
        "n_positions": metadata("context_length"),
        "layer_norm_epsilon": metadata("attention.layer_norm_epsilon"),
        "vocab_size": vocab_size(metadata),
        "activation_function": "gelu_new",
        "tie_word_embeddings": "output.weight" not in metadata.tensors,
    }


def _interleaved(stem: str, metadata: Metadata) -> Change | None:
    heads = {"attn_q": metadata("attention.head_count"), "attn_k": kv_heads(metadata)}
    return halves(heads[stem]) if stem in heads else None


def _zero_centred(stem: str, metadata: Metadata) -> Change | None:
    return minus_one if stem.endswith("norm") else None


def _inputs_first(stem: str, metadata: Metadata) -> Change | None:
    return transposed if stem in ("attn_qkv", "attn_output", "ffn_up", "ffn_down") else None


LLAMA = Architecture("LlamaForCausalLM", llama, BLOCK, TOP, change=_interleaved)
MISTRAL = dataclasses.replace(LLAMA, theirs="MistralForCausalLM", config=mistral)
GEMMA = Architecture("GemmaForCausalLM", gemma, BLOCK, TOP, change=_zero_centred)
GEMMA2 = dataclasses.replace(GEMMA, theirs="Gemma2ForCausalLM", config=gemma2, block=BLOCK | SANDWICH)


def llama_or_mistral(metadata: Mapping[str, Any]) -> Architecture:
    return MISTRAL if "llama.attention.sliding_window" in metadata else LLAMA


# By general.architecture: an architecture, or what chooses one by the metadata.
ARCHITECTURES: Mapping[str, Architecture | Callable[[Mapping[str, Any]], Architecture]] = {
    "llama": llama_or_mistral,
    "qwen2": Architecture("Qwen2ForCausalLM", qwen2, BLOCK, TOP),
    "qwen3": Architecture("Qwen3ForCausalLM", qwen3, BLOCK | QK_NORMS, TOP),
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3": dataclasses.replace(GEMMA2, theirs="Gemma3ForCausalLM", config=gemma3, block=BLOCK | SANDWICH | QK_NORMS),
    "phi2": Architecture(
        "PhiForCausalLM",
        phi2,
        BLOCK | {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
        TOP | {"output_norm": "model.final_layernorm"},
        fused={"attn_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        gpt2,
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        blocks="transformer.h.{}.",
        change=_inputs_first,
    ),
}

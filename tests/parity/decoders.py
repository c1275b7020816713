"""Configs of small language models of `transformers`: each family of decoders, and what its config can change."""

import transformers

VOCAB = 30
SIZES = {"vocab_size": VOCAB, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 20}
LLAMA = GROUPED | {"rms_norm_eps": 3e-4, "max_position_embeddings": 32}
GEMMA = LLAMA | {"query_pre_attn_scalar": 5, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 3}


def rope(kind="default", theta=500.0, **entries):
    return {"rope_type": kind, "rope_theta": theta, **entries}


def llama(**fields):
    return transformers.LlamaConfig(**LLAMA | {"rope_parameters": rope()} | fields)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
YARN = {"factor": 4.0, "original_max_position_embeddings": 8}
SCALINGS = {
    "linear": {"rope_parameters": rope("linear", factor=2.5)},
    "dynamic": {"rope_parameters": rope("dynamic", factor=2.0), "max_position_embeddings": 5},
    "llama3": {"rope_parameters": rope("llama3", **LLAMA3)},
    "yarn": {"rope_parameters": rope("yarn", **YARN)},
    "yarn, all entries": {
        "rope_parameters": rope("yarn", **YARN, beta_fast=16.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=0.4)
    },
    "yarn, its factor given": {"rope_parameters": rope("yarn", **YARN, attention_factor=1.3)},
}

CONFIGS = {
    "LlamaForCausalLM": lambda: llama(hidden_act="gelu", attention_bias=True, mlp_bias=True),
    "MistralForCausalLM": lambda: transformers.MistralConfig(**LLAMA, sliding_window=3, tie_word_embeddings=True),
    "Qwen2ForCausalLM": lambda: transformers.Qwen2Config(
        **LLAMA, use_sliding_window=True, sliding_window=3, max_window_layers=1
    ),
    "Qwen3ForCausalLM": lambda: transformers.Qwen3Config(**LLAMA, attention_bias=True),
    "GemmaForCausalLM": lambda: transformers.GemmaConfig(**LLAMA),
    "Gemma2ForCausalLM": lambda: transformers.Gemma2Config(
        **GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=1.5
    ),
    "Gemma3ForCausalLM": lambda: transformers.Gemma3TextConfig(
        **GEMMA,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": rope("linear", factor=8.0), "sliding_attention": rope(theta=50.0)},
    ),
    "PhiForCausalLM": lambda: transformers.PhiConfig(
        **SIZES | {"hidden_size": 16},
        num_key_value_heads=2,
        intermediate_size=20,
        layer_norm_eps=3e-4,
        max_position_embeddings=32,
        qk_layernorm=True,
        rope_parameters=rope(partial_rotary_factor=0.5),
    ),
    "OPTForCausalLM": lambda: transformers.OPTConfig(**SIZES, ffn_dim=20, max_position_embeddings=32),
    "OPTForCausalLM as OPT-350m": lambda: transformers.OPTConfig(
        **SIZES,
        ffn_dim=20,
        max_position_embeddings=32,
        do_layer_norm_before=False,
        word_embed_proj_dim=10,
        activation_function="gelu",
        enable_bias=False,
    ),
    "GPT2LMHeadModel": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=12, n_layer=3, n_head=4, n_inner=20, n_positions=32, layer_norm_epsilon=3e-4
    ),
    "GPT2LMHeadModel without scaled scores": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=12, n_layer=3, n_head=4, n_positions=32, scale_attn_weights=False,
        tie_word_embeddings=False, activation_function="relu",
    ),
}  # fmt: skip


def build(config):
    """Returns the model of a config, whose attention weights can be looked at."""
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")

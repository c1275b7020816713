"""Small language models of `transformers` as GGUF files, converted as llama.cpp's script does it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests import gguf_writing

VOCAB = 64
SIZES = {"vocab_size": VOCAB, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
LLAMA = SIZES | {
    "hidden_size": 32,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "rms_norm_eps": 3e-4,
    "tie_word_embeddings": False,
}
GEMMA = LLAMA | {"query_pre_attn_scalar": 16, "sliding_window": 4, "tie_word_embeddings": True}


def rope(kind: str = "default", **entries: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **entries}}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "factor": 8.0}
FULL, SLIDING = "full_attention", "sliding_attention"
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA, **rope()),
    "llama, tied, biases": lambda: transformers.LlamaConfig(
        **LLAMA | {"tie_word_embeddings": True}, **rope(), attention_bias=True, mlp_bias=True
    ),
    "llama, linear": lambda: transformers.LlamaConfig(**LLAMA, **rope("linear", factor=4.0)),
    "llama, yarn": lambda: transformers.LlamaConfig(
        **LLAMA, **rope("yarn", factor=4.0, original_max_position_embeddings=16)
    ),
    "llama, llama3": lambda: transformers.LlamaConfig(
        **LLAMA, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}
    ),
    "mistral": lambda: transformers.MistralConfig(**LLAMA, **rope(), sliding_window=4),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA | {"hidden_size": 64}, **rope()),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA, **rope()),
    "gemma": lambda: transformers.GemmaConfig(**LLAMA | {"tie_word_embeddings": True}, **rope()),
    "gemma2": lambda: transformers.Gemma2Config(
        **GEMMA, **rope(), attn_logit_softcapping=3.0, final_logit_softcapping=2.0
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **GEMMA | {"num_hidden_layers": 7},
        rope_parameters={
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "phi2": lambda: transformers.PhiConfig(
        **SIZES,
        hidden_size=64,
        num_key_value_heads=2,
        intermediate_size=96,
        layer_norm_eps=3e-4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_inner=96, n_positions=64, layer_norm_epsilon=3e-4
    ),
}
LAYERS = {
    "input_layernorm": "attn_norm", "ln_1": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.dense": "attn_output",
    "attn.c_proj": "attn_output", "attn.c_attn": "attn_qkv", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.fc1": "ffn_up",
    "mlp.c_fc": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.fc2": "ffn_down", "mlp.c_proj": "ffn_down",
    "ln_2": "ffn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOP = {
    "model.embed_tokens": "token_embd", "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
    "model.norm": "output_norm", "model.final_layernorm": "output_norm", "transformer.ln_f": "output_norm",
    "lm_head": "output",
}  # fmt: skip
LAYER = re.compile(r"(?:model\.layers|transformer\.h)\.(\d+)\.(.+)\.(weight|bias)")


def build(kind: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def architecture(kind: str) -> str:
    kind = kind.partition(",")[0]
    return "llama" if kind == "mistral" else kind


def metadata(kind: str, model: transformers.PreTrainedModel) -> dict[str, Any]:
    """Returns what llama.cpp's script writes of a config."""
    name, config = architecture(kind), model.config
    found: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": 96,
        "attention.head_count": config.num_attention_heads,
    }
    if name == "gpt2":
        return _named(name, found | {"attention.layer_norm_epsilon": config.layer_norm_epsilon})
    layered = config.rope_parameters.get(FULL, config.rope_parameters)
    found |= {"attention.head_count_kv": config.num_key_value_heads, "rope.freq_base": layered["rope_theta"]}
    if name == "phi2":
        return _named(name, found | {"attention.layer_norm_epsilon": config.layer_norm_eps, "rope.dimension_count": 8})
    found |= {"attention.layer_norm_rms_epsilon": config.rms_norm_eps}
    found |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if name in ("llama", "qwen2"):
        found |= {"vocab_size": VOCAB, "rope.dimension_count": config.head_dim}
    if kind in ("mistral", "gemma2", "gemma3"):
        found["attention.sliding_window"] = config.sliding_window
    if kind == "gemma2":
        found |= {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}
    if layered["rope_type"] in ("linear", "yarn"):
        found |= {"rope.scaling.type": layered["rope_type"], "rope.scaling.factor": layered["factor"]}
    if layered["rope_type"] == "yarn":
        found["rope.scaling.original_context_length"] = layered["original_max_position_embeddings"]
    return _named(name, found)


def _named(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in found.items()}


def tensors(kind: str, model: transformers.PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors as llama.cpp's script writes them."""
    name = architecture(kind)
    layers = LAYERS | SANDWICH if name in ("gemma2", "gemma3") else LAYERS
    heads = {"attn_q": model.config.num_attention_heads}
    heads["attn_k"] = getattr(model.config, "num_key_value_heads", 0)
    for full, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        if (found := LAYER.fullmatch(full)) is None:
            stem, _, end = full.rpartition(".")
            if stem == "lm_head" and model.config.tie_word_embeddings:
                continue
            stem = TOP[stem]
            theirs = f"{stem}.{end}"
        else:
            stem, end = layers[found[2]], found[3]
            theirs = f"blk.{found[1]}.{stem}.{end}"
        if name == "llama" and stem in heads:
            n = heads[stem]
            array = array.reshape(n, 2, array.shape[0] // n // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if name.startswith("gemma") and stem.endswith("norm"):
            array = array + 1
        if name == "gpt2" and array.ndim == 2 and found:
            array = array.T
        yield theirs, array
    if kind == "llama, llama3":
        yield "rope_freqs.weight", rope_factors(500_000.0, 16, 8.0)


def rope_factors(theta: float, width: int, factor: float) -> np.ndarray:
    """The factors that llama.cpp's script computes, line by line."""
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, width, 2) / width):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def write(path: Path, kind: str, model: transformers.PreTrainedModel, kinds: Any = None, dtype: Any = None) -> Path:
    """Writes a model; `kinds` and `dtype` are the type of its matrices, quantized or not."""
    found = dict(tensors(kind, model))
    matrices = [name for name, tensor in found.items() if tensor.ndim == 2]
    if dtype is not None:
        found |= {name: found[name].astype(dtype) for name in matrices}
    quantized = {} if kinds is None else dict.fromkeys(matrices, kinds)
    return gguf_writing.write(path, architecture(kind), metadata(kind, model), found, quantized)

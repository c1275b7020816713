"""Published sizes of decoder-only language models: fields of `decoder.Decoder`, whose defaults are LLaMA's."""

from typing import Any

LLAMA3 = {"kind": "llama3", "factor": 32.0, "original_length": 8192, "low": 1.0, "high": 4.0}
SMOL = {"vocab_size": 49_152, "length": 8192, "norm_eps": 1e-5, "tied": True}
QWEN2 = {"vocab_size": 151_936, "length": 131_072, "rope": {"base": 1_000_000.0}, "qkv_bias": True}
GEMMA = {
    "head_dim": 256, "vocab_size": 256_000, "length": 8192, "norm": "rms_zero_centred", "activation": "gelu_tanh",
    "scale_embed": True, "tied": True,
}  # fmt: skip
GEMMA2 = GEMMA | {
    "norms": "sandwich", "pattern": ("local", "global"), "local": 4096, "query_scalar": 256.0, "soft_cap": 50.0,
    "logit_soft_cap": 30.0,
}  # fmt: skip
GEMMA3 = GEMMA | {
    "vocab_size": 262_144, "length": 32_768, "norms": "sandwich", "pattern": ("local",) * 5 + ("global",), "local": 512,
    "query_scalar": 256.0, "qk_norm": True, "rope": {"base": 1_000_000.0}, "local_rope": {"base": 10_000.0},
}  # fmt: skip
PLAIN = {
    "norm": "layer", "norm_eps": 1e-5, "mlp": "plain", "qkv_bias": True, "out_bias": True, "mlp_bias": True,
}  # fmt: skip
PHI = PLAIN | {
    "vocab_size": 51_200, "length": 2048, "parallel": True, "activation": "gelu_tanh", "rope": {"channels": 32},
    "head_bias": True,
}  # fmt: skip
OPT = PLAIN | {
    "vocab_size": 50_272, "length": 2048, "positions": "learned", "position_offset": 2, "activation": "relu",
    "tied": True,
}  # fmt: skip
OPT_350M = {"embed_width": 512, "norms": "post", "final_norm": False}
GPT2 = PLAIN | {
    "vocab_size": 50_257, "length": 1024, "positions": "learned", "activation": "gelu_tanh", "tied": True,
}  # fmt: skip


def _sizes(width: int, depth: int, heads: int, mlp_width: int, kv_heads: int | None = None) -> dict[str, Any]:
    sizes = {"width": width, "depth": depth, "heads": heads, "mlp_width": mlp_width}
    return sizes if kv_heads is None else sizes | {"kv_heads": kv_heads}


LLAMA1 = {"vocab_size": 32_000, "length": 2048}
LLAMA2 = {"vocab_size": 32_000, "length": 4096, "norm_eps": 1e-5}
VARIANTS: dict[str, dict[str, Any]] = {
    "LLaMA-7B": _sizes(4096, 32, 32, 11_008) | LLAMA1,
    "LLaMA-13B": _sizes(5120, 40, 40, 13_824) | LLAMA1,
    "LLaMA-2-7B": _sizes(4096, 32, 32, 11_008) | LLAMA2,
    "LLaMA-2-13B": _sizes(5120, 40, 40, 13_824) | LLAMA2,
    "Vicuna-7B": _sizes(4096, 32, 32, 11_008) | LLAMA2,  # version 1.5
    "LLaMA-3-8B": _sizes(4096, 32, 32, 14_336, 8)
    | {"vocab_size": 128_256, "length": 8192, "norm_eps": 1e-5, "rope": {"base": 500_000.0}},
    "LLaMA-3.2-1B": _sizes(2048, 16, 32, 8192, 8)
    | {"vocab_size": 128_256, "length": 131_072, "norm_eps": 1e-5, "tied": True}
    | {"rope": {"base": 500_000.0, "scaling": LLAMA3}},
    "TinyLlama-1.1B": _sizes(2048, 22, 32, 5632, 4) | LLAMA1 | {"norm_eps": 1e-5},
    "SmolLM2-135M": _sizes(576, 30, 9, 1536, 3) | SMOL | {"rope": {"base": 100_000.0}},
    "SmolLM2-360M": _sizes(960, 32, 15, 2560, 5) | SMOL | {"rope": {"base": 100_000.0}},
    "SmolLM2-1.7B": _sizes(2048, 24, 32, 8192) | SMOL | {"rope": {"base": 130_000.0}},
    "Mistral-7B": _sizes(4096, 32, 32, 14_336, 8)
    | {"vocab_size": 32_000, "length": 32_768, "norm_eps": 1e-5, "pattern": ("local",), "local": 4096},
    "Qwen2-0.5B": _sizes(896, 24, 14, 4864, 2) | QWEN2 | {"tied": True},
    "Qwen2-1.5B": _sizes(1536, 28, 12, 8960, 2) | QWEN2 | {"tied": True},
    "Qwen2-7B": _sizes(3584, 28, 28, 18_944, 4) | QWEN2 | {"vocab_size": 152_064},
    "Qwen2.5-0.5B": _sizes(896, 24, 14, 4864, 2) | QWEN2 | {"tied": True, "length": 32_768},
    "Qwen3-0.6B": _sizes(1024, 28, 16, 3072, 8)
    | {"head_dim": 128, "vocab_size": 151_936, "length": 40_960, "rope": {"base": 1_000_000.0}}
    | {"qk_norm": True, "tied": True},
    "Gemma-2B": _sizes(2048, 18, 8, 16_384, 1) | GEMMA,
    "Gemma-2-2B": _sizes(2304, 26, 8, 9216, 4) | GEMMA2,
    "Gemma-2-9B": _sizes(3584, 42, 16, 14_336, 8) | GEMMA2,
    "Gemma-3-270M": _sizes(640, 18, 4, 2048, 1) | GEMMA3,
    "Gemma-3-1B": _sizes(1152, 26, 4, 6912, 1) | GEMMA3,
    "Phi-1.5": _sizes(2048, 24, 32, 8192) | PHI,
    "Phi-2": _sizes(2560, 32, 32, 10_240) | PHI,
    "OPT-125M": _sizes(768, 12, 12, 3072) | OPT,
    "OPT-350M": _sizes(1024, 24, 16, 4096) | OPT | OPT_350M,
    "OPT-1.3B": _sizes(2048, 24, 32, 8192) | OPT,
    "OPT-2.7B": _sizes(2560, 32, 32, 10_240) | OPT,
    "OPT-6.7B": _sizes(4096, 32, 32, 16_384) | OPT,
    "GPT-2": _sizes(768, 12, 12, 3072) | GPT2,
    "GPT-2-medium": _sizes(1024, 24, 16, 4096) | GPT2,
    "GPT-2-large": _sizes(1280, 36, 20, 5120) | GPT2,
    "GPT-2-XL": _sizes(1600, 48, 25, 6400) | GPT2,
}

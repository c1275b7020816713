"""Published sizes of decoder-only language models: fields of `decoder.Decoder`, whose defaults are LLaMA's."""

from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "LLaMA-7B": {
        "width": 4096, "depth": 32, "heads": 32, "mlp_width": 11_008, "vocab_size": 32_000, "length": 2048,
    },
    "SmolLM2-135M": {
        "width": 576, "depth": 30, "heads": 9, "kv_heads": 3, "mlp_width": 1536, "vocab_size": 49_152, "length": 8192,
        "norm_eps": 1e-5, "rope": {"base": 100_000.0}, "tied": True,
    },
}  # fmt: skip

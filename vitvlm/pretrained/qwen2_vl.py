"""Qwen2-VL weights of Hugging Face `transformers`: Qwen2VLForConditionalGeneration."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.models.qwen_vit import QwenViT
from vitvlm.nn.patches import as_pair
from vitvlm.pretrained.families import Json
from vitvlm.pretrained.tables import Row, Transform, row, under
from vitvlm.pretrained.transforms import dense, layer_norm, qkv, qkv_bias
from vitvlm.pretrained.vit import activation


def vision_fields(source: Json) -> dict[str, Any]:
    """Fields of `models.build("qwen_vit", ...)` from a vision_config. Raises ConfigError for patches of other kinds."""
    patch, frames = source["patch_size"], source["temporal_patch_size"]
    if not isinstance(patch, int) or not isinstance(frames, int):
        raise ConfigError(f"config.json: patch_size {patch}, temporal_patch_size {frames}: whole numbers are read")
    rope = source.get("rope_parameters") or {}
    if rope.get("rope_type", "axial") != "axial":
        raise ConfigError(f"config.json: vision_config.rope_parameters.rope_type {rope['rope_type']!r}; only 'axial'")
    return {
        "width": source["embed_dim"],
        "depth": source["depth"],
        "heads": source["num_heads"],
        "mlp_width": int(source["embed_dim"] * source["mlp_ratio"]),
        "activation": activation(source),
        "channels": source.get("in_chans", source["in_channels"]),
        "patch_size": patch,
        "frames": frames,
        "merge": source["spatial_merge_size"],
        "rope_base": float(rope.get("rope_theta", 10_000.0)),
    }


def vision_rows(model: QwenViT) -> Iterator[Row]:
    """Rows of Qwen2-VL's image encoder, without its merger's linear maps, which are the connector."""
    yield row("patch_embed.proj.weight", "patches/kernel", _video_patches(model))
    for i in range(model.depth):
        yield from under(f"blocks.{i}.", f"blocks_{i}/", _block_rows())
    yield from layer_norm("merger.ln_q", "norm")


def _block_rows() -> Iterator[Row]:
    projections = ("query", "key", "value")
    yield from layer_norm("norm1", "attention_norm")
    yield row("attn.qkv.weight", tuple(f"attention/{name}/kernel" for name in projections), qkv)
    yield row("attn.qkv.bias", tuple(f"attention/{name}/bias" for name in projections), qkv_bias)
    yield from dense("attn.proj", "attention/out")
    yield from layer_norm("norm2", "mlp_norm")
    yield from dense("mlp.fc1", "mlp/up")
    yield from dense("mlp.fc2", "mlp/down")


def _video_patches(model: QwenViT) -> Transform:
    """Transform from a convolution of frames [D, C, T, P, P] to our [P, P, T * C, D]."""
    (p, q), T = as_pair(model.patch_size), model.frames

    def read(x: np.ndarray) -> tuple[np.ndarray]:
        return (x.transpose(3, 4, 2, 1, 0).reshape(p, q, -1, len(x)),)

    def write(kernel: np.ndarray) -> tuple[np.ndarray]:
        return (kernel.reshape(p, q, T, -1, kernel.shape[-1]).transpose(4, 3, 2, 0, 1),)

    return Transform(read, write)

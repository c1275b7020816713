"""Swin tensors under timm's names, swin_*; like ours, its merging is at the start of a stage."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.swin import Swin
from vitvlm.nn.patches import as_pair
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, row
from vitvlm.pretrained.timm_vit import block_rows
from vitvlm.pretrained.transforms import conv, dense, layer_norm, positions, same
from vitvlm.pretrained.vit import is_square

NORM_EPS = 1e-5


def todays_names(tensors: Tensors) -> Tensors:
    """The tensors under timm's names of today.

    Swin's authors, and timm before 0.9, have merging at the end of a stage, and no more than "head" for the head.
    """
    if not any(name.startswith(("layers.0.downsample.", "head.weight")) for name in tensors):
        return tensors

    def rename(name: str) -> str:
        name = re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)
        return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)

    return tensors.renamed(rename)


def swin_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("swin", ...)`: but for the image's size, all are in the tensors' names and shapes."""
    shapes = tensors.shapes()
    width, _, *patch = shapes["patch_embed.proj.weight"]
    blocks = [name.split(".") for name in shapes if name.startswith("layers.") and ".blocks." in name]
    stages = 1 + max(int(parts[1]) for parts in blocks)
    tables = [shapes[f"layers.{s}.blocks.0.attn.relative_position_bias_table"] for s in range(stages)]
    if len(lengths := {length for length, _ in tables}) > 1:
        raise ConfigError(f"Swin has one window in all stages: not tables of {sorted(lengths)} relative positions")
    return {
        "width": width,
        "depths": tuple(1 + max(int(parts[3]) for parts in blocks if parts[1] == str(s)) for s in range(stages)),
        "heads": tuple(heads for _, heads in tables),
        "window": (math.isqrt(tables[0][0]) + 1) // 2,
        "mlp_ratio": shapes["layers.0.blocks.0.mlp.fc1.weight"][0] / width,
        "patch_size": tuple(patch),
        "image_size": tuple(source["pretrained_cfg"]["input_size"][1:]),
        "positions": "learned" if "absolute_pos_embed" in shapes else "none",
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in shapes,
        "norm_eps": NORM_EPS,
        "embed_norm_eps": NORM_EPS,
        "num_classes": source["num_classes"],
        "drop_path": source.get("model_args", {}).get("drop_path_rate", 0.0),
    }


def swin_config(model: Swin, params: Mapping[str, Any]) -> dict[str, Any]:
    """timm's config.json: an architecture's name, and arguments that make it this model."""
    channels, size = params["patches"]["kernel"].shape[2], as_pair(model.image_size)
    return {
        "architecture": "swin_tiny_patch4_window7_224",
        "num_classes": model.num_classes,
        "num_features": model.width * 2 ** (len(model.depths) - 1),
        "global_pool": "avg",
        "pretrained_cfg": {
            "input_size": [channels, *size],
            "num_classes": model.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
        },
        "model_args": {
            "img_size": list(size),
            "in_chans": channels,
            "patch_size": as_pair(model.patch_size)[0],
            "embed_dim": model.width,
            "depths": list(model.depths),
            "num_heads": list(model.heads),
            "window_size": model.window,
            "mlp_ratio": model.mlp_ratio,
            "qkv_bias": model.qkv_bias,
            "drop_path_rate": model.drop_path,
        },
    }


def swin_rows(model: Swin, names: Collection[str]) -> Iterator[Row]:
    """Rows of timm's SwinTransformer."""
    yield row("patch_embed.proj.weight", "patches/kernel", conv)
    yield row("patch_embed.proj.bias", "patches/bias", same)
    yield from layer_norm("patch_embed.norm", "patches_norm")
    if model.positions == "learned":
        yield row("absolute_pos_embed", "positions/grid", positions(model.table_grid))
    for s, depth in enumerate(model.depths):
        if s > 0:
            yield from layer_norm(f"layers.{s}.downsample.norm", f"stages_{s}/merge/norm")
            yield from dense(f"layers.{s}.downsample.reduction", f"stages_{s}/merge/reduction", bias=False)
        for i in range(depth):
            theirs, ours = f"layers.{s}.blocks.{i}", f"stages_{s}/blocks_{i}"
            yield from block_rows(theirs, ours, model.qkv_bias)
            yield row(f"{theirs}.attn.relative_position_bias_table", f"{ours}/attention/relative_positions", same)
    yield from layer_norm("norm", "norm")
    if model.num_classes:
        yield from dense("head.fc", "head")


FIELDS = {
    **anything("width", "depths", "heads", "window", "mlp_ratio", "image_size", "qkv_bias", "num_classes", "drop_path"),
    "patch_size": lambda model: is_square(model.patch_size),
    "norm_eps": (NORM_EPS,),
    "embed_norm_eps": (NORM_EPS,),
}
FAMILIES = {
    "swin": Family("swin", Swin, swin_fields, swin_rows, swin_config, expressible=Expressible("Swin", Swin, FIELDS))
}

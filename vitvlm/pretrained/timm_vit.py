"""ViT tensors under timm's names, which the original MAE has too."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.vit import SIZES, ViT
from vitvlm.nn.patches import Pair, as_pair, patch_grid
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, row
from vitvlm.pretrained.transforms import (
    conv,
    dense,
    gate_and_up,
    gate_and_up_bias,
    layer_norm,
    position_rows,
    qkv,
    qkv_bias,
    same,
    token,
    tokens,
)

NORM_EPS = 1e-6  # of every ViT of timm
HEADS = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}
POOLS = {"token": "cls", "avg": "gap"}
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}


# Names of other code bases and of other times, as timm has them today.
RENAMED = (
    (re.compile(r"^blocks\.\d+\.(\d+\.[a-z])"), r"blocks.\1"),  # DINOv2's training has its blocks in chunks
    (re.compile(r"^register_tokens$"), "reg_token"),  # DINOv2
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    (re.compile(r"^linear_head\."), "head."),  # DINOv2's classifiers
    (re.compile(r"\.gamma_([12])$"), r".ls\1.gamma"),  # DeiT III
)


def todays_names(tensors: Tensors) -> Tensors:
    """The tensors under timm's names of today."""

    def rename(name: str) -> str:
        for pattern, new in RENAMED:
            name = pattern.sub(new, name)
        return name

    return tensors.renamed(rename)


def vit_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vit", ...)` from timm's config.json and the tensors' shapes.

    Raises ConfigError for a field that neither tells.
    """
    given = source.get("model_args", {})
    if source["global_pool"] not in POOLS:
        raise ConfigError(f"config.json: global_pool {source['global_pool']!r}; there is: {', '.join(POOLS)}")
    if (activation := given.get("act_layer", "gelu")) not in ACTIVATIONS:
        raise ConfigError(f"config.json: act_layer {activation!r}; there is: {', '.join(ACTIVATIONS)}")
    size = as_pair(given.get("img_size") or tuple(source["pretrained_cfg"]["input_size"][1:]))
    found = encoder_fields(tensors, size)
    return found | {
        "heads": given.get("num_heads") or _heads(source["architecture"]),
        "num_classes": source["num_classes"],
        "pool": POOLS[source["global_pool"]],
        "activation": ACTIVATIONS[activation],
        "layer_scale": found["layer_scale"] and given.get("init_values", 1.0),
        "drop_path": given.get("drop_path_rate", 0.0),
    }


def _heads(architecture: str) -> int:
    """Returns the number of heads of an architecture such as "vit_base_patch16_224"."""
    size = architecture.split("_")[1]
    if size not in HEADS:
        raise ConfigError(f"config.json: the heads of {architecture!r} are not known: add model_args.num_heads")
    return SIZES[HEADS[size]]["heads"]


def encoder_fields(tensors: Tensors, image_size: Pair) -> dict[str, Any]:
    """Fields of a ViT for images of this size, as far as the names and shapes of its tensors tell."""
    shapes = tensors.shapes()
    width, _, *patch = shapes["patch_embed.proj.weight"]
    up, down = shapes["blocks.0.mlp.fc1.weight"][0], shapes["blocks.0.mlp.fc2.weight"][1]
    return {
        "width": width,
        "depth": 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")), default=-1),
        "mlp": "swiglu" if up == 2 * down else "plain",
        "mlp_width": down,
        "patch_size": tuple(patch),
        "image_size": image_size,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in shapes else None,
        "registers": shapes["reg_token"][1] if "reg_token" in shapes else 0,
        "cls_token": "cls_token" in shapes,
        "special_positions": shapes["pos_embed"][1] != math.prod(patch_grid(image_size, tuple(patch))),
        "norm_pooled": "fc_norm.weight" in shapes,
        "representation_size": shapes["pre_logits.fc.weight"][0] if "pre_logits.fc.weight" in shapes else None,
        "distillation": "dist_token" in shapes,
        "norm_eps": NORM_EPS,
        "scan": False,
    }


def vit_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """timm's config.json: the nearest architecture's name, and arguments that make it this model."""
    patch, size = as_pair(model.patch_size), as_pair(model.image_size)
    channels = params["patches"]["kernel"].shape[2]
    return {
        "architecture": "deit_base_distilled_patch16_224" if model.distillation else "vit_base_patch16_224",
        "num_classes": model.num_classes,
        "num_features": model.width,
        "global_pool": next(theirs for theirs, ours in POOLS.items() if ours == model.pool),
        "pretrained_cfg": {
            "input_size": [channels, *size],
            "num_classes": model.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "model_args": {
            "img_size": list(size),
            "in_chans": channels,
            "patch_size": list(patch),
            "embed_dim": model.width,
            "depth": model.depth,
            "num_heads": model.heads,
            "mlp_ratio": model.mlp_width / model.width,
            "qkv_bias": model.qkv_bias,
            "init_values": model.layer_scale,
            "drop_path_rate": model.drop_path,
            "reg_tokens": model.registers,
            "class_token": model.has_cls,
            "no_embed_class": not model.special_positions,
            "global_pool": next(theirs for theirs, ours in POOLS.items() if ours == model.pool),
            "act_layer": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == model.activation),
        },
    }


def vit_rows(model: ViT, names: Collection[str]) -> Iterator[Row]:
    """Rows of timm's VisionTransformer."""
    yield from encoder_rows(model)
    if model.representation_size:
        yield from dense("pre_logits.fc", "representation")
    if model.num_classes:
        yield from dense("head", "head")
    if model.num_classes and model.distillation:
        yield from dense("head_dist", "distillation_head")


def encoder_rows(model: ViT) -> Iterator[Row]:
    """A ViT without a head."""
    if model.has_cls:
        yield row("cls_token", "cls", token)
    if model.distillation:
        yield row("dist_token", "distillation", token)
    if model.registers:
        yield row("reg_token", "registers", tokens)
    yield from position_rows("pos_embed", model.positions, model.table_grid, model.width, model.placed)
    yield row("patch_embed.proj.weight", "patches/kernel", conv)
    yield row("patch_embed.proj.bias", "patches/bias", same)
    for i in range(model.depth):
        theirs, ours = f"blocks.{i}", f"blocks_{i}"
        yield from block_rows(theirs, ours, model.qkv_bias, model.layer_scale is not None, model.mlp)
    yield from layer_norm("fc_norm" if model.norm_pooled else "norm", "norm")


def block_rows(
    theirs: str, ours: str, bias: bool = True, layer_scale: bool = False, mlp: str = "plain"
) -> Iterator[Row]:
    yield from layer_norm(f"{theirs}.norm1", f"{ours}/attention_norm")
    attention = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
    yield row(f"{theirs}.attn.qkv.weight", tuple(f"{name}/kernel" for name in attention), qkv)
    if bias:
        yield row(f"{theirs}.attn.qkv.bias", tuple(f"{name}/bias" for name in attention), qkv_bias)
    yield from dense(f"{theirs}.attn.proj", f"{ours}/attention/out")
    yield from layer_norm(f"{theirs}.norm2", f"{ours}/mlp_norm")
    if mlp == "swiglu":
        yield row(f"{theirs}.mlp.fc1.weight", (f"{ours}/mlp/gate/kernel", f"{ours}/mlp/up/kernel"), gate_and_up)
        yield row(f"{theirs}.mlp.fc1.bias", (f"{ours}/mlp/gate/bias", f"{ours}/mlp/up/bias"), gate_and_up_bias)
    else:
        yield from dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/up")
    yield from dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")
    if layer_scale:
        yield row(f"{theirs}.ls1.gamma", f"{ours}/attention_scale", same)
        yield row(f"{theirs}.ls2.gamma", f"{ours}/mlp_scale", same)


FIELDS = {
    **anything("width", "depth", "heads", "mlp_width", "patch_size", "image_size", "num_classes", "qkv_bias"),
    **anything("cls_token", "distillation", "special_positions", "registers", "layer_scale", "drop_path"),
    "pool": tuple(POOLS.values()),
    "norm_pooled": lambda model: model.norm_pooled == (model.pool == "gap"),
    "activation": tuple(ACTIVATIONS.values()),
    "norm_eps": (NORM_EPS,),
}
VIT = Family("vit", ViT, vit_fields, vit_rows, vit_config, expressible=Expressible("ViT", ViT, FIELDS))

FAMILIES = {"vit": VIT, "deit": VIT}

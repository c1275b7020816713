"""ViTs in files without a config, under timm's names: timm's, DeiT, DINO, DINOv2, and MAE's encoder, fine-tuned or not.

Sizes follow from shapes, heads from the published widths; what the file does not say has to be given.
"""

import math
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.vit import SIZES, ViT
from vitvlm.nn.patches import Pair, as_pair
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.families import Family, Inputs, Json, image_inputs
from vitvlm.pretrained.timm_vit import encoder_fields, vit_rows
from vitvlm.pretrained.transforms import is_fixed_table

# By width: those of the paper's sizes, and of DINOv2's giant.
HEADS = {sizes["width"]: sizes["heads"] for sizes in SIZES.values()} | {1536: 24}


def vit_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of a ViT: it pools the mean if there is an "fc_norm", CLS otherwise, and both if the head is 2 D wide.

    Raises ConfigError for a field that neither the tensors nor the keywords in `source` tell.
    """
    found, shapes = encoder_fields(tensors, image_size(source, tensors)), tensors.shapes()
    width = found["width"]
    if "heads" not in source and width not in HEADS:
        raise ConfigError(f"no published ViT has width {width}, and the file does not say its heads: give heads=")
    grid = tuple(n // p for n, p in zip(found["image_size"], found["patch_size"]))
    classes, inputs = shapes.get("head.weight", (0, 0))
    both = classes and inputs == 2 * width
    by_cls = found["cls_token"] and not found["norm_pooled"]
    return found | {
        "heads": source.get("heads") or HEADS[width],
        "positions": "sincos" if is_fixed_table(grid, width, tensors["pos_embed"]) else "learned",
        "pool": "cls_and_gap" if both else "cls" if by_cls else "gap",
        "num_classes": classes,
        "distillation_head": "head_dist.weight" in shapes or not found["distillation"],
    }


def dinov2_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of a DINOv2; only models with registers resample positions with antialias."""
    found = vit_fields(source, tensors)
    return found | {"position_antialias": bool(found["registers"])}


def image_size(source: Json, tensors: Tensors) -> Pair:
    """Returns `image_size` of the source, or else the size that a square grid of positions covers."""
    if "image_size" in source:
        return as_pair(source["image_size"])
    shapes = tensors.shapes()
    _, _, height, width = shapes["patch_embed.proj.weight"]
    positions = shapes["pos_embed"][1]
    for special in (sum(name in shapes for name in ("cls_token", "dist_token")), 0):
        side = math.isqrt(max(positions - special, 0))
        if side and side * side == positions - special:
            return side * height, side * width
    raise ConfigError(f"{positions} positions are those of no square grid: give image_size=(height, width)")


def inputs(source: Json, tensors: Tensors) -> Inputs:
    """Images, as the patch embedding and the positions say."""
    return image_inputs(image_size(source, tensors), tensors.shapes()["patch_embed.proj.weight"][1])


VIT = Family("vit", ViT, vit_fields, vit_rows)
DINOV2 = Family("vit", ViT, dinov2_fields, vit_rows)

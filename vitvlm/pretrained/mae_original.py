"""Checkpoints of the MAE authors' own code: one .pth, whole, or the encoder alone.

They hold no config: sizes follow from shapes, heads from the published widths; what the file does not say has to be
given.
"""

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.mae import MAE
from vitvlm.models.vit import SIZES, ViT
from vitvlm.nn.patches import Pair, as_pair
from vitvlm.pretrained.entries import Tensors, WeightsError, blamed
from vitvlm.pretrained.families import Family, Json, assemble, image_inputs
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.timm_vit import block_rows, encoder_fields, encoder_rows
from vitvlm.pretrained.torch_files import open_torch
from vitvlm.pretrained.transforms import dense, is_fixed_table, layer_norm, position_rows, token

DECODER_HEADS = 16  # of all published sizes


def load(path: Path, image_size: int | Pair | None = None, **fields: Any) -> Pretrained:
    """An MAE, or a ViT without a head where the file holds no decoder.

    Args:
      image_size: that the positions were made for, (height, width) in pixels; needed if their grid is not square.
      fields: of the model; for a file with a decoder `norm_pix` is needed, for unpublished sizes `heads` and
        `decoder_heads`.

    Raises WeightsError for a file that is damaged, of another model, or that does not say enough.
    """
    tensors = open_torch(path)
    if any(name.startswith("model.") for name in tensors):
        tensors = tensors.under("model.")
    with blamed(path):
        if "patch_embed.proj.weight" not in tensors:
            raise WeightsError(f"{path}: no MAE: it holds {', '.join(sorted(tensors)[:5])}, …")
        source = {**fields, "image_size": as_pair(image_size) if image_size else _square(tensors)}
        family = FAMILIES["decoder_embed.weight" in tensors]
        channels = tensors.shapes()["patch_embed.proj.weight"][1]
        section, model, variables = assemble(
            family, source, tensors, image_inputs(source["image_size"], channels), fields
        )
    return Pretrained(
        model, variables, None, None, {"path": str(path), "format": "mae", "model": section, "config": {}}
    )


def _square(tensors: Tensors) -> Pair:
    shapes = tensors.shapes()
    side = math.isqrt(shapes["pos_embed"][1] - 1)
    if 1 + side * side != shapes["pos_embed"][1]:
        raise ConfigError(f"{shapes['pos_embed'][1] - 1} positions are no square grid: give image_size=(height, width)")
    _, _, height, width = shapes["patch_embed.proj.weight"]
    return side * height, side * width


def vit_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Of the encoder."""
    found = encoder_fields(tensors)
    grid = tuple(n // p for n, p in zip(source["image_size"], found["patch_size"]))
    published = {sizes["width"]: sizes["heads"] for sizes in SIZES.values()}
    if "heads" not in source and found["width"] not in published:
        raise ConfigError(f"no published MAE has width {found['width']}: give heads=")
    fixed = is_fixed_table(grid, found["width"], tensors["pos_embed"])
    return found | {
        "heads": source.get("heads") or published[found["width"]],
        "image_size": source["image_size"],
        "positions": "sincos" if fixed else "learned",
    }


def mae_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Of the whole autoencoder."""
    if "norm_pix" not in source:
        raise ConfigError("the file does not say whether its targets were normalised: give norm_pix=True or False")
    shapes = tensors.shapes()
    layers = [int(name.split(".")[1]) for name in shapes if name.startswith("decoder_blocks.")]
    return vit_fields(source, tensors) | {
        "decoder_width": shapes["decoder_embed.weight"][0],
        "decoder_depth": 1 + max(layers, default=-1),
        "decoder_heads": DECODER_HEADS,
        "decoder_mlp_width": shapes["decoder_blocks.0.mlp.fc1.weight"][0],
    }


def vit_rows(model: ViT, names: Collection[str]) -> Iterator[Row]:
    return encoder_rows(model)


def mae_rows(model: MAE, names: Collection[str]) -> Iterator[Row]:
    yield from under("", "vit/", encoder_rows(model.vit))
    yield from dense("decoder_embed", "decoder/embed")
    yield row("mask_token", "decoder/mask_token", token)
    yield from position_rows(
        "decoder_pos_embed",
        model.vit.positions,
        model.vit.table_grid,
        model.decoder_width,
        ours="decoder/positions",
    )
    for i in range(model.decoder_depth):
        yield from block_rows(f"decoder_blocks.{i}", f"decoder/blocks_{i}")
    yield from layer_norm("decoder_norm", "decoder/norm")
    yield from dense("decoder_pred", "decoder/prediction")


# By whether there is a decoder.
FAMILIES = {
    False: Family("vit", ViT, vit_fields, vit_rows, lambda model, params: {}),
    True: Family("mae", MAE, mae_fields, mae_rows, lambda model, params: {}),
}

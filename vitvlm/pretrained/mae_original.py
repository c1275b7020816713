"""Whole autoencoders of the MAE authors' own code, with the decoder; the encoder alone is as `vit_files` says."""

from collections.abc import Collection, Iterator
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.mae import MAE
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.timm_vit import block_rows, encoder_rows
from vitvlm.pretrained.transforms import dense, layer_norm, position_rows, token
from vitvlm.pretrained.vit_files import vit_fields

DECODER_HEADS = 16  # of all published sizes
ENCODER = ("width", "depth", "heads", "mlp_width", "patch_size", "image_size", "positions", "qkv_bias", "norm_eps")


def mae_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of the whole autoencoder. Raises ConfigError for one that neither tensors nor keywords tell."""
    if "norm_pix" not in source:
        raise ConfigError("the file does not say whether its targets were normalised: give norm_pix=True or False")
    shapes = tensors.shapes()
    layers = [int(name.split(".")[1]) for name in shapes if name.startswith("decoder_blocks.")]
    encoder = vit_fields(source, tensors)
    return {name: encoder[name] for name in ENCODER} | {
        "scan": False,
        "decoder_width": shapes["decoder_embed.weight"][0],
        "decoder_depth": 1 + max(layers, default=-1),
        "decoder_heads": DECODER_HEADS,
        "decoder_mlp_width": shapes["decoder_blocks.0.mlp.fc1.weight"][0],
    }


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


FAMILY = Family("mae", MAE, mae_fields, mae_rows)

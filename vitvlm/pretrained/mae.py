"""MAE weights of Hugging Face `transformers`: ViTMAEForPreTraining."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from vitvlm.models.mae import MAE
from vitvlm.models.vit import ViT
from vitvlm.nn.patches import as_pair, patch_grid
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, is_fixed_table, layer_norm, position_rows, token
from vitvlm.pretrained.vit import ENCODER_FIELDS, block_rows, encoder_config, encoder_fields, encoder_rows

ENCODER_POSITIONS, DECODER_POSITIONS = "vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"


def mae_fields(source: Json, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Fields of `models.build("mae", ...)` from the config.json of a ViTMAEForPreTraining.

    Its positions are the fixed sin-cos table if the tensors hold that, otherwise learned.
    """
    return encoder_fields(source) | {
        "positions": "sincos" if _fixed(source, tensors) else "learned",
        "mask_ratio": source["mask_ratio"],
        "norm_pix": source["norm_pix_loss"],
        "decoder_width": source["decoder_hidden_size"],
        "decoder_depth": source["decoder_num_hidden_layers"],
        "decoder_heads": source["decoder_num_attention_heads"],
        "decoder_mlp_width": source["decoder_intermediate_size"],
    }


def mae_config(model: MAE, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a ViTMAEForPreTraining."""
    return encoder_config(model.vit, params["vit"]) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "mask_ratio": model.mask_ratio,
        "norm_pix_loss": model.norm_pix,
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_intermediate_size": model.decoder_mlp_width or 4 * model.decoder_width,
    }


def _fixed(source: Json, tensors: Mapping[str, np.ndarray]) -> bool:
    """Tells whether both position tables are the fixed one; a missing table is reported later, with all others."""
    grid = patch_grid(as_pair(source["image_size"]), as_pair(source["patch_size"]))
    widths = {ENCODER_POSITIONS: source["hidden_size"], DECODER_POSITIONS: source["decoder_hidden_size"]}
    return all(name not in tensors or is_fixed_table(grid, width, tensors[name]) for name, width in widths.items())


def mae_rows(model: MAE, names: Collection[str]) -> Iterator[Row]:
    """Rows of a ViTMAEForPreTraining.

    Recent `transformers` save the decoder's layers as "decoder.decoder_encoder.layer"; the hub has the older name.
    """
    vit = model.vit
    recent = any(name.startswith("decoder.decoder_encoder.layer.") for name in names)
    decoder_layers = "decoder.decoder_encoder.layer" if recent else "decoder.decoder_layers"
    yield from under("vit.", "vit/", encoder_rows(vit))
    yield from dense("decoder.decoder_embed", "decoder/embed")
    yield row("decoder.mask_token", "decoder/mask_token", token)
    yield from position_rows(
        DECODER_POSITIONS, vit.positions, vit.table_grid, model.decoder_width, ours="decoder/positions"
    )
    for i in range(model.decoder_depth):
        yield from block_rows(f"{decoder_layers}.{i}", f"decoder/blocks_{i}", vit.qkv_bias)
    yield from layer_norm("decoder.decoder_norm", "decoder/norm")
    yield from dense("decoder.decoder_pred", "decoder/prediction")


ENCODER = Expressible("ViTMAE", ViT, ENCODER_FIELDS | {"positions": ("sincos", "learned")})
FIELDS = {
    "vit": ENCODER,
    **anything("mask_ratio", "norm_pix"),
    **anything("decoder_width", "decoder_depth", "decoder_heads", "decoder_mlp_width"),
}
FAMILIES = {
    "ViTMAEForPreTraining": Family(
        "mae", MAE, mae_fields, mae_rows, mae_config, "vit_mae", expressible=Expressible("ViTMAE", MAE, FIELDS)
    )
}

"""MAE weights of Hugging Face `transformers`: ViTMAEForPreTraining."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vitvlm.models.mae import MAE
from vitvlm.pretrained.tables import (
    Facts,
    Table,
    cls_and_grid,
    conv_to_patch,
    fixed_positions,
    is_fixed_table,
    row,
    same,
    token,
)
from vitvlm.pretrained.vit import blocks, check_expressible, dense, encoder_config, encoder_fields, norm, vit_facts

ENCODER_POSITIONS, DECODER_POSITIONS = "vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"


def mae_fields(source: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
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


def mae_config(model: MAE, channels: int) -> dict[str, Any]:
    """The config.json of a ViTMAEForPreTraining. Raises ConfigError for what it cannot express."""
    check_expressible({"masking": model.masking == "random"}, model, "ViTMAE")
    check_expressible({"positions": model.vit.positions in ("sincos", "learned")}, model.vit, "ViTMAE")
    return encoder_config(model.vit, channels) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "mask_ratio": model.mask_ratio,
        "norm_pix_loss": model.norm_pix,
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_intermediate_size": model.decoder_mlp_width or 4 * model.decoder_width,
    }


def _fixed(source: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether both position tables are the fixed one; a missing one is complained of later, with all others."""
    facts, widths = mae_facts(source), {ENCODER_POSITIONS: "width", DECODER_POSITIONS: "decoder_width"}
    return all(name not in tensors or is_fixed_table(facts, width, tensors[name]) for name, width in widths.items())


def mae_facts(source: Mapping[str, Any]) -> Facts:
    """What the table needs to know: layers `i` of the encoder and `j` of the decoder, widths, patch and grid."""
    return {
        **vit_facts(source),
        "j": source["decoder_num_hidden_layers"],
        "decoder_width": source["decoder_hidden_size"],
    }


def mae_table(source: Mapping[str, Any], names: Collection[str], positions: str) -> Table:
    """ViTMAEForPreTraining, with positions "sincos" (checked to be the fixed table) or "learned".

    Recent `transformers` save the decoder's layers as "decoder.decoder_encoder.layer"; the hub has the older name.
    """
    recent = any(name.startswith("decoder.decoder_encoder.layer.") for name in names)
    decoder_layers = "decoder.decoder_encoder.layer" if recent else "decoder.decoder_layers"
    learned = positions == "learned"
    return (
        Table(
            row("vit.embeddings.cls_token", "vit/cls", token),
            row(ENCODER_POSITIONS, ("vit/positions/cls", "vit/positions/grid"), cls_and_grid)
            if learned
            else row(ENCODER_POSITIONS, (), fixed_positions("width")),
            row("vit.embeddings.patch_embeddings.projection.weight", "vit/patches/projection/kernel", conv_to_patch),
            row("vit.embeddings.patch_embeddings.projection.bias", "vit/patches/projection/bias", same),
        )
        + blocks("vit.encoder.layer.{i}", "vit/blocks_{i}", source["qkv_bias"])
        + Table(
            *norm("vit.layernorm", "vit/norm"),
            *dense("decoder.decoder_embed", "decoder/embed"),
            row("decoder.mask_token", "decoder/mask_token", token),
            row(DECODER_POSITIONS, ("decoder/positions/cls", "decoder/positions/grid"), cls_and_grid)
            if learned
            else row(DECODER_POSITIONS, (), fixed_positions("decoder_width")),
        )
        + blocks(decoder_layers + ".{j}", "decoder/blocks_{j}", source["qkv_bias"])
        + Table(*norm("decoder.decoder_norm", "decoder/norm"), *dense("decoder.decoder_pred", "decoder/prediction"))
    )

"""MAE weights of Hugging Face `transformers`: ViTMAEForPreTraining."""

from collections.abc import Mapping
from typing import Any

from vitvlm.pretrained.tables import Facts, Table, cls_and_grid, conv_to_patch, fixed_positions, row, same, token
from vitvlm.pretrained.vit import blocks, dense, encoder_fields, norm, vit_facts


def mae_fields(source: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `models.build("mae", ...)` from the config.json of a ViTMAEForPreTraining."""
    return encoder_fields(source) | {
        "mask_ratio": source["mask_ratio"],
        "norm_pix": source["norm_pix_loss"],
        "decoder_width": source["decoder_hidden_size"],
        "decoder_depth": source["decoder_num_hidden_layers"],
        "decoder_heads": source["decoder_num_attention_heads"],
        "decoder_mlp_width": source["decoder_intermediate_size"],
    }


def mae_facts(source: Mapping[str, Any]) -> Facts:
    """What the table needs to know: layers `i` of the encoder and `j` of the decoder, widths, patch and grid."""
    return {
        **vit_facts(source),
        "j": source["decoder_num_hidden_layers"],
        "decoder_width": source["decoder_hidden_size"],
    }


def mae_table(source: Mapping[str, Any], positions: str, decoder_layers: str = "decoder.decoder_layers") -> Table:
    """ViTMAEForPreTraining, with positions "sincos" (checked to be the fixed table) or "learned".

    Recent `transformers` save the decoder's layers as "decoder.decoder_encoder.layer".
    """
    learned = positions == "learned"
    return (
        Table(
            row("vit.embeddings.cls_token", "vit/cls", token),
            row("vit.embeddings.position_embeddings", ("vit/positions/cls", "vit/positions/grid"), cls_and_grid)
            if learned
            else row("vit.embeddings.position_embeddings", (), fixed_positions("width")),
            row("vit.embeddings.patch_embeddings.projection.weight", "vit/patches/projection/kernel", conv_to_patch),
            row("vit.embeddings.patch_embeddings.projection.bias", "vit/patches/projection/bias", same),
        )
        + blocks("vit.encoder.layer.{i}", "vit/blocks_{i}", source["qkv_bias"])
        + Table(
            *norm("vit.layernorm", "vit/norm"),
            *dense("decoder.decoder_embed", "decoder/embed"),
            row("decoder.mask_token", "decoder/mask_token", token),
            row("decoder.decoder_pos_embed", ("decoder/positions/cls", "decoder/positions/grid"), cls_and_grid)
            if learned
            else row("decoder.decoder_pos_embed", (), fixed_positions("decoder_width")),
        )
        + blocks(decoder_layers + ".{j}", "decoder/blocks_{j}", source["qkv_bias"])
        + Table(*norm("decoder.decoder_norm", "decoder/norm"), *dense("decoder.decoder_pred", "decoder/prediction"))
    )

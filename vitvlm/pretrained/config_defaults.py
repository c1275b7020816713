"""Defaults of the config classes of `transformers`, by `model_type`, for fields that a config.json leaves out.

Old files leave fields out, and files of two towers leave out most fields of their towers. This module holds the fields
that vitvlm reads; the tests compare each default with the classes of `transformers`.
"""

from collections.abc import Mapping
from typing import Any

from vitvlm.pretrained import language_defaults, vlm_defaults
from vitvlm.pretrained.tower_defaults import CLIP_TEXT, CLIP_VISION, SIGLIP2_VISION, SIGLIP_TEXT, SIGLIP_VISION

Json = Mapping[str, Any]

VIT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
    "pooler_output_size": None,  # that is, hidden_size
    "pooler_act": "tanh",
}
MAE = {name: value for name, value in VIT.items() if not name.startswith("pooler")} | {
    "decoder_num_attention_heads": 16,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_intermediate_size": 2048,
    "mask_ratio": 0.75,
    "norm_pix_loss": False,
}
DINOV2 = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
    "use_swiglu_ffn": False,
}
SWIN = {
    "image_size": 224,
    "patch_size": 4,
    "num_channels": 3,
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.1,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
}
RESNET = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": (256, 512, 1024, 2048),
    "depths": (3, 4, 6, 3),
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
ALIGN_VISION = {
    "num_channels": 3,
    "image_size": 600,
    "width_coefficient": 2.0,
    "depth_coefficient": 3.1,
    "depth_divisor": 8,
    "kernel_sizes": (3, 3, 5, 3, 5, 5, 3),
    "out_channels": (16, 24, 40, 80, 112, 192, 320),
    "depthwise_padding": (),
    "strides": (1, 2, 2, 2, 1, 2, 1),
    "num_block_repeats": (1, 2, 2, 3, 3, 4, 1),
    "expand_ratios": (1, 6, 6, 6, 6, 6, 6),
    "squeeze_expansion_ratio": 0.25,
    "hidden_act": "swish",
    "pooling_type": "mean",
    "batch_norm_eps": 1e-3,
    "batch_norm_momentum": 0.99,
    "drop_connect_rate": 0.2,
}
EFFICIENTNET = ALIGN_VISION | {"dropout_rate": 0.5}

IDEFICS_VISION = {
    "embed_dim": 768,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
IDEFICS_PERCEIVER = {
    "resampler_depth": 6,
    "resampler_n_latents": 64,
    "resampler_n_heads": 16,
    "resampler_head_dim": 96,
    "qk_layer_norms_perceiver": False,
}
IDEFICS = {
    **language_defaults.ROPE,
    "vocab_size": 32_000,
    "additional_vocab_size": 0,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "dropout": 0.0,
    "alpha_type": "float",
    "cross_layer_interval": 1,
    "qk_layer_norms": False,
    "use_resampler": False,
    "tie_word_embeddings": False,
}
BERT = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}

BLIP2_VISION = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "qkv_bias": True,
}
QFORMER = {name: value for name, value in BERT.items() if name != "type_vocab_size"} | {"cross_attention_frequency": 2}

T5 = {
    "vocab_size": 32_128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,  # that is, num_layers
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "is_decoder": False,
}
MT5 = T5 | {
    "vocab_size": 250_112,
    "d_ff": 1024,
    "num_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
BLIP2 = {
    "num_query_tokens": 32,
    "image_token_index": None,
    "vision_config": BLIP2_VISION,
    "qformer_config": QFORMER,
    "text_config": {"model_type": "opt", **language_defaults.OPT},
}
BLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 384,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
BLIP_TEXT = {
    "vocab_size": 30_524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,  # BERT has 12
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "bos_token_id": 30_522,
    "sep_token_id": 102,
    "is_decoder": True,
    "tie_word_embeddings": True,
}

DEFAULTS: Mapping[str, Json] = {
    "vit": VIT,
    "deit": VIT,
    "vit_mae": MAE,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2 | {"patch_size": 16, "num_register_tokens": 4},
    "swin": SWIN,
    "resnet": RESNET,
    "efficientnet": EFFICIENTNET,
    "bert": BERT,
    "t5": T5,
    "mt5": MT5,
    "clip_vision_model": CLIP_VISION,
    "clip_text_model": CLIP_TEXT,
    "clip": {
        "projection_dim": 512,
        "logit_scale_init_value": 2.6592,
        "vision_config": CLIP_VISION,
        "text_config": CLIP_TEXT,
    },
    "siglip_vision_model": SIGLIP_VISION,
    "siglip_text_model": SIGLIP_TEXT,
    "siglip": {"vision_config": SIGLIP_VISION, "text_config": SIGLIP_TEXT},
    "siglip2_vision_model": SIGLIP2_VISION,
    "siglip2_text_model": SIGLIP_TEXT,
    "siglip2": {"vision_config": SIGLIP2_VISION, "text_config": SIGLIP_TEXT},
    "align_vision_model": ALIGN_VISION,
    "align_text_model": BERT,
    "align": {
        "projection_dim": 640,
        "temperature_init_value": 1.0,
        "vision_config": ALIGN_VISION,
        "text_config": BERT,
    },
    "blip-2": BLIP2 | {"image_text_hidden_size": 256, "qformer_config": QFORMER | {"use_qformer_text_input": False}},
    "instructblip": BLIP2,
    "idefics": {
        **IDEFICS,
        "vision_config": IDEFICS_VISION,
        "perceiver_config": IDEFICS_PERCEIVER,
    },
    "open_flamingo": {  # no class of theirs
        "cross_attn_every_n_layers": 1,
        "media_token_id": None,
        "vision_config": CLIP_VISION,
        "text_config": {"model_type": "llama"},
    },
    "blip": {
        "image_text_hidden_size": 256,
        "tie_word_embeddings": True,
        "vision_config": BLIP_VISION,
        "text_config": BLIP_TEXT,
    },
    **language_defaults.DEFAULTS,
    **vlm_defaults.DEFAULTS,
}

# Fields of old files that newer ones hold inside another.
INSIDE = dict.fromkeys(("rope_theta", "rope_local_base_freq", "partial_rotary_factor"), "rope_parameters")

FLAT = {"qwen2_vl"}  # whose old files have the fields of text_config among the rest


def completed(model_type: str, source: Json) -> dict[str, Any]:
    """The config with what it leaves out, also inside its parts' own: text_config, vision_config, qformer_config.

    Of old files text_config_dict and vision_config_dict go before these.
    """
    defaults = DEFAULTS[model_type]
    full = {**defaults, **source}
    for part in (name for name, value in defaults.items() if isinstance(value, Mapping)):
        own = _own(model_type, source, part)
        full[part] = {**_of_part(defaults[part], own), **own}
    return full


def defaulted(model_type: str, source: Json) -> dict[str, Any]:
    """The fields that the config leaves to the defaults, with their values; those of the towers by "text_config.…"."""
    defaults = DEFAULTS[model_type]
    flat = {name: value for name, value in defaults.items() if not isinstance(value, Mapping)}
    missing = {name: value for name, value in flat.items() if name not in source and INSIDE.get(name) not in source}
    for tower in defaults.keys() - flat.keys():
        own = _own(model_type, source, tower)
        of_part = _of_part(defaults[tower], own)
        left = {name: value for name, value in of_part.items() if name not in own and INSIDE.get(name) not in own}
        missing |= {f"{tower}.{name}": value for name, value in left.items()}
    return missing


def _own(model_type: str, source: Json, part: str) -> Json:
    """Returns what the source says of a part: in a config of its own, or, of files without one, among the rest."""
    own = source.get(f"{part}_dict")
    own = source.get(part) if own is None else own
    if own is None and part == "text_config" and model_type in FLAT:
        names = (*DEFAULTS[model_type][part], "rope_scaling", *INSIDE.values(), "layer_types")
        own = {name: source[name] for name in names if name in source and name != "model_type"}
    return own or {}


def _of_part(defaults: Json, own: Json) -> Json:
    """The defaults of a part, which may be of any `model_type` where they have one: its config says which."""
    if not own or "model_type" not in defaults:
        return defaults
    kind = own.get("model_type", defaults["model_type"])
    return {"model_type": kind, **DEFAULTS[kind]} if kind in DEFAULTS else defaults

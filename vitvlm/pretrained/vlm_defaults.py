"""Defaults of the config classes of vision-language models that put images among texts, for `config_defaults`.

Those of a part hold where it is not given at all; the `model_type` of one that is given says which its own are.
"""

from collections.abc import Mapping
from typing import Any

from vitvlm.pretrained import language_defaults
from vitvlm.pretrained.tower_defaults import CLIP_VISION, SIGLIP_TOWER, SIGLIP_VISION

# Of nanoVLM's VLMConfig; old files, which leave out the tokens that it adds, had none.
NANOVLM = {
    "vit_hidden_dim": 768,
    "vit_inter_dim": 3072,
    "vit_patch_size": 16,
    "vit_img_size": 512,
    "vit_n_heads": 12,
    "vit_dropout": 0.0,
    "vit_n_blocks": 12,
    "vit_ln_eps": 1e-6,
    "vit_cls_flag": False,
    "lm_hidden_dim": 960,
    "lm_inter_dim": 2560,
    "lm_rms_eps": 1e-5,
    "lm_re_base": 100_000,
    "lm_max_position_embeddings": 8192,
    "lm_base_vocab_size": 49_152,
    "lm_vocab_size": 49_152,
    "lm_n_heads": 15,
    "lm_n_kv_heads": 5,
    "lm_dropout": 0.0,
    "lm_n_blocks": 32,
    "lm_attn_scaling": 1.0,
    "lm_tie_weights": True,
    "mp_pixel_shuffle_factor": 4,
    "mp_image_token_length": 64,
    "max_img_size": 1536,
    "resize_to_max_side_len": False,
    "vlm_extra_tokens": {},
}
IDEFICS3 = {
    "scale_factor": 2,
    "tie_word_embeddings": False,
    "vision_config": SIGLIP_TOWER
    | {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32, "num_channels": 3, "image_size": 224},
    "text_config": {"model_type": "llama", **language_defaults.LLAMA, "rms_norm_eps": 1e-5},
}
LLAVA = {
    "image_token_index": 32_000,
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "multimodal_projector_bias": True,
    "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "clip_vision_model",
        **CLIP_VISION,
        **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        **{"patch_size": 14, "image_size": 336, "projection_dim": 768},
    },
    "text_config": {"model_type": "llama", **language_defaults.LLAMA},
}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "paligemma": {
        "image_token_index": 256_000,
        "tie_word_embeddings": True,
        "vision_config": {
            "model_type": "siglip_vision_model",
            **SIGLIP_VISION,
            **{"hidden_size": 1152, "intermediate_size": 4096, "num_hidden_layers": 27, "num_attention_heads": 16},
            **{"patch_size": 14, "vision_use_head": False},
        },
        "text_config": {
            "model_type": "gemma",
            **language_defaults.GEMMA,
            **{"hidden_size": 2048, "num_hidden_layers": 18, "intermediate_size": 16_384, "num_attention_heads": 8},
            **{"num_key_value_heads": 1, "vocab_size": 257_152},
        },
    },
    "llava": LLAVA,
    "llava_next": LLAVA,
    "idefics3": {**IDEFICS3, "image_token_id": 128_257},
    "smolvlm": {**IDEFICS3, "image_token_id": 128_257},
    "nanovlm": NANOVLM,
    "qwen2_vl": {
        "image_token_id": 151_655,
        "video_token_id": 151_656,
        "tie_word_embeddings": False,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "hidden_act": "quick_gelu",
            "mlp_ratio": 4,
            "num_heads": 16,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "text_config": {
            "model_type": "qwen2_vl_text",
            **{name: value for name, value in language_defaults.QWEN2.items() if name != "tie_word_embeddings"},
            **{"vocab_size": 152_064, "hidden_size": 8192, "intermediate_size": 29_568, "num_hidden_layers": 80},
            **{"num_attention_heads": 64, "num_key_value_heads": 8, "max_window_layers": 80, "rms_norm_eps": 1e-5},
            "rope_theta": 1_000_000.0,
        },
    },
}

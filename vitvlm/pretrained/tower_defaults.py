"""Defaults of the config classes of CLIP's and SigLIP's towers, for `config_defaults`."""

CLIP_TOWER = {
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "projection_dim": 512,
}
CLIP_VISION = CLIP_TOWER | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
CLIP_TEXT = CLIP_TOWER | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49_408,
    "max_position_embeddings": 77,
    "eos_token_id": 49_407,
}
SIGLIP_TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}
SIGLIP_VISION = SIGLIP_TOWER | {"num_channels": 3, "image_size": 224, "patch_size": 16, "vision_use_head": True}
SIGLIP2_VISION = SIGLIP_TOWER | {"num_channels": 3, "num_patches": 256, "patch_size": 16, "vision_use_head": True}
SIGLIP_TEXT = SIGLIP_TOWER | {
    "vocab_size": 32_000,
    "max_position_embeddings": 64,
    "projection_size": None,  # that is, hidden_size
}

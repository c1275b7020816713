"""Published vision-language models: fields of `vlm.VLM`, its parts by name."""

from typing import Any

CLIP_L = {"name": "vit", "variant": "L/14", "pre_norm": True, "patch_bias": False, "norm_pooled": True}
CLIP_L |= {"activation": "quick_gelu", "norm_eps": 1e-5}


def _llava(vision_size: int, language: str, connector: str, vocab_size: int) -> dict[str, Any]:
    """Liu et al. 2023 and 2024: CLIP's ViT-L/14 before its last block, without CLS, and a Vicuna with an <image>."""
    return {
        "image": {**CLIP_L, "image_size": vision_size},
        "connector": {"name": connector},
        "text": {"name": "decoder", "variant": language, "vocab_size": vocab_size},
        "features": (-2,),
        "image_token": 32_000,
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "LLaVA-7B": _llava(224, "LLaMA-7B", "linear", 32_003),
    "LLaVA-13B": _llava(224, "LLaMA-13B", "linear", 32_003),
    "LLaVA-1.5-7B": _llava(336, "Vicuna-7B", "mlp", 32_064),
    "LLaVA-1.5-13B": _llava(336, "LLaMA-2-13B", "mlp", 32_064),
}

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


def _siglip(variant: str, size: int) -> dict[str, Any]:
    """SigLIP's encoder without its pooling head."""
    return {"name": "vit", "variant": variant, "image_size": size, "pool": "gap", "activation": "gelu_tanh"}


SO400M = {"name": "vit", "width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304, "patch_size": 14, "pool": "gap"}
SO400M |= {"activation": "gelu_tanh"}
IDEFICS3 = {**SO400M, "image_size": 364, "position_buckets": True}


def _paligemma(size: int) -> dict[str, Any]:
    """Beyer et al. 2024: SigLIP's So400m/14, one linear map, and Gemma, which reads the prompt both ways."""
    return {
        "image": {**SO400M, "image_size": size},
        "connector": {"name": "linear"},
        "text": {"name": "decoder", "variant": "Gemma-2B", "vocab_size": 257_216},
        "image_token": 257_152,
        "prefix_lm": True,
    }


def _shuffled(
    image: dict[str, Any], factor: int, language: str, vocab_size: int, token: int | None, **text: Any
) -> dict[str, Any]:
    """nanoVLM and Idefics3 (Laurençon et al. 2024): neighbours put into channels, one linear map."""
    return {
        "image": image,
        "connector": {"name": "pixel_shuffle", "factor": factor},
        "text": {"name": "decoder", "variant": language, "vocab_size": vocab_size, **text},
        "image_token": token,
    }


# Of nanoVLM: texts beyond SmolLM2's 8,192 tokens are turned by angles as much smaller.
NANO_ROPE = {"base": 100_000.0, "scaling": {"kind": "dynamic_linear", "factor": 1.0, "original_length": 8192}}


def _llava_next(language: str, **text: Any) -> dict[str, Any]:
    """Liu et al. 2024, LLaVA-NeXT: LLaVA-1.5 on tiles of an image, and a newline vector."""
    found = _llava(336, language, "mlp", 32_064) | {"own_tokens": 1}
    return found | {"text": found["text"] | text}


def _qwen2_vl(language: str) -> dict[str, Any]:
    """Wang et al. 2024: an encoder of its own, merged tokens through two linear maps, and positions of three axes."""
    rope = {"base": 1_000_000.0, "axes": (0,) * 16 + (1,) * 24 + (2,) * 24}
    vision = {"name": "qwen_vit", "width": 1280, "depth": 32, "heads": 16, "mlp_width": 5120, "patch_size": 14}
    text = {"name": "decoder", "variant": language, "length": 32_768, "rope": rope}
    connector = {"name": "mlp", "hidden": 5120}
    return {"image": vision, "connector": connector, "text": text, "image_token": 151_655}


VARIANTS: dict[str, dict[str, Any]] = {
    "PaliGemma-3B-224": _paligemma(224),
    "PaliGemma-3B-448": _paligemma(448),
    "nanoVLM-222M": _shuffled(_siglip("B/16", 224), 2, "SmolLM2-135M", 49_152, None, rope=NANO_ROPE),
    "nanoVLM-228M": _shuffled(_siglip("B/16", 512), 4, "SmolLM2-135M", 49_218, 49_152, rope=NANO_ROPE),
    "Idefics3-8B": _shuffled(IDEFICS3, 2, "LLaMA-3-8B", 128_259, 128_257),
    "LLaVA-NeXT-Vicuna-7B": _llava_next("Vicuna-7B"),
    "LLaVA-NeXT-Mistral-7B": _llava_next("Mistral-7B", pattern=("global",), local=None),
    "Qwen2-VL-2B": _qwen2_vl("Qwen2-1.5B"),
    "Qwen2-VL-7B": _qwen2_vl("Qwen2-7B"),
    "LLaVA-7B": _llava(224, "LLaMA-7B", "linear", 32_003),
    "LLaVA-13B": _llava(224, "LLaMA-13B", "linear", 32_003),
    "LLaVA-1.5-7B": _llava(336, "Vicuna-7B", "mlp", 32_064),
    "LLaVA-1.5-13B": _llava(336, "LLaMA-2-13B", "mlp", 32_064),
}

"""Records small random models of timm, their configs as on the hub, and what they answer; timm is no test dependency.

    pip install timm torchvision && python tests/parity/recorded/record_timm.py

writes a folder for each beside this file: config.json, model.safetensors, expected.safetensors.
"""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

FOLDER = Path(__file__).parent
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 4, "num_classes": 5}
CASES = {
    "timm_vit": ("vit_tiny_patch16_224", {**SMALL, "img_size": (8, 12)}),
    "timm_vit_mean": ("vit_tiny_patch16_224", {**SMALL, "img_size": 16, "global_pool": "avg"}),
    "timm_vit_registers": (
        "vit_tiny_patch16_224",
        {
            **SMALL,
            "img_size": 16,
            "init_values": 0.5,
            "reg_tokens": 2,
            "no_embed_class": True,
            "qkv_bias": False,
            "in_chans": 1,
        },
    ),
    "timm_deit": ("deit_tiny_distilled_patch16_224", {**SMALL, "img_size": (8, 12)}),
    "timm_swin": (
        "swin_tiny_patch4_window7_224",
        {
            "embed_dim": 8,
            "depths": (2, 2),
            "num_heads": (2, 4),
            "window_size": 4,
            "img_size": 32,
            "num_classes": 5,
        },
    ),
    "timm_resnet": ("resnet50", {"layers": (2, 1, 1, 1), "channels": (4, 8, 8, 12), "stem_width": 8, "num_classes": 5}),
}


def record(name: str, architecture: str, arguments: dict) -> None:
    torch.manual_seed(0)
    model = timm.create_model(architecture, **arguments).eval()
    for tensor in (*model.parameters(), *(b for n, b in model.named_buffers() if "running" in n)):
        tensor.data += 0.1 * torch.rand(tensor.shape)
    size = arguments.get("img_size", (64, 48))
    height, width = size if isinstance(size, tuple) else (size, size)
    images = torch.randn(2, arguments.get("in_chans", 3), height, width)
    with torch.no_grad():
        tokens, logits = model.forward_features(images), model(images)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    given = {key: value for key, value in plain.items() if key not in ("num_classes", "global_pool")}
    described = {k: v for k, v in model.pretrained_cfg.items() if k not in ("url", "hf_hub_id", "license")}
    config = {"pretrained_cfg": {**described, "input_size": tuple(images.shape[1:])}}
    if "global_pool" in arguments:
        config["global_pool"] = arguments["global_pool"]
    save_for_hf(model, FOLDER / name, model_config=config, model_args=given, safe_serialization=True)
    expected = {"images": images, "tokens": tokens, "logits": logits}
    save_file({key: value.contiguous() for key, value in expected.items()}, FOLDER / name / "expected.safetensors")


if __name__ == "__main__":
    for name, (architecture, arguments) in CASES.items():
        record(name, architecture, arguments)

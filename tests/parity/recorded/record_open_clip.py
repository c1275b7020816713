"""Records small random models of open_clip as folders of its hub, what they answer, and their losses' gradients.

    pip install --no-deps open_clip_torch && python tests/parity/recorded/record_open_clip.py

writes a folder for each beside this file: open_clip_config.json, open_clip_model.safetensors, expected.safetensors and
gradients.safetensors; and open_clip_sizes.json, configs of published models and the numbers of their parameters.
"""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import torch
import transformers  # noqa: F401 - before torchvision is not what it looks for
from safetensors.torch import save_file

# open_clip imports it for transforms alone, of which nothing is recorded.
names = ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional")
sys.modules.update({f"torchvision{name}": MagicMock() for name in names})

import open_clip  # noqa: E402
from open_clip.loss import SigLipLoss  # noqa: E402

FOLDER = Path(__file__).parent
VISION = {"layers": 2, "width": 24, "head_width": 8, "mlp_ratio": 1.5, "patch_size": 4, "image_size": 13}
TEXT = {"layers": 2, "width": 16, "heads": 2, "mlp_ratio": 2.5, "vocab_size": 31, "context_length": 9}
COCA_TEXT = {**TEXT, "embed_cls": True, "output_tokens": True}
DECODER = {**{name: TEXT[name] for name in ("width", "vocab_size", "context_length")}, "heads": 4, "layers": 2}
POOLED = {"attn_pooler_queries": 6, "attn_pooler_heads": 4, "output_tokens": True}
CASES = {
    "clip": {"quick_gelu": True, "embed_dim": 20, "vision_cfg": VISION, "text_cfg": TEXT},
    "custom_text": {
        "embed_dim": 20,
        "init_logit_scale": 2.0,
        "init_logit_bias": -3.0,
        "custom_text": True,
        "vision_cfg": {
            **VISION,
            "ls_init_value": 0.5,
            "pool_type": "avg",
            "no_ln_pre": True,
            "norm_kwargs": {"eps": 1e-3},
        },
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "eos", "eos_id": 2},
    },
    "coca": {
        "embed_dim": 16,
        "vision_cfg": {**VISION, "attentional_pool": True, **POOLED},
        "text_cfg": COCA_TEXT,
        "multimodal_cfg": DECODER,
        "custom_text": True,
    },
    "coca_cascade": {
        "quick_gelu": True,
        "embed_dim": 16,
        "vision_cfg": {**VISION, "width": 16, "attentional_pool": "cascade", **POOLED},
        "text_cfg": COCA_TEXT,
        "multimodal_cfg": DECODER,
        "custom_text": True,
    },
}
# The last fills its length; the second is empty but for its start (1) and its end (2). The largest id is unique.
TEXTS = torch.tensor([[1, 9, 30, 2, 0, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0, 0, 0, 0], [1, 8, 5, 12, 28, 7, 25, 11, 2]])
PUBLISHED = ("ViT-B-32", "coca_ViT-B-32", "coca_ViT-L-14")


def make(config: dict) -> torch.nn.Module:
    config = dict(config)
    custom = config.pop("custom_text", False)
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return kind(**config)


def record(case: str, config: dict) -> None:
    torch.manual_seed(0)
    model = make(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim:  # open_clip leaves some of them as the memory was
            around = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
            parameter.data = around + 0.3 * torch.randn(parameter.shape)
    images = torch.randn(3, 3, 13, 13)
    expected = {"images": images, "texts": TEXTS}
    if isinstance(model, open_clip.CoCa):
        answer = model(images, TEXTS)
        image, text = answer["image_features"].reshape(3, -1), answer["text_features"]  # a cascade's are [B, 1, E]
        contrastive, caption = open_clip.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(
            image, text, answer["logits"], answer["labels"], answer["logit_scale"]
        )
        loss = contrastive + caption
        expected |= {"logits": answer["logits"], "contrastive_loss": contrastive, "caption_loss": caption}
        expected |= {"image_tokens": model._encode_image(images)[1], "captions": greedy(model, images)}
    elif "init_logit_bias" in config:
        image, text, scale, bias = model(images, TEXTS)
        loss = SigLipLoss()(image, text, scale, bias)
    else:
        image, text, scale = model(images, TEXTS)
        loss = open_clip.ClipLoss()(image, text, scale)
    loss.backward()
    expected |= {"image_embedding": image, "text_embedding": text, "loss": loss}
    folder = FOLDER / f"open_clip_{case}"
    folder.mkdir(exist_ok=True)
    save(model.state_dict(), folder / "open_clip_model.safetensors")
    save({name: parameter.grad for name, parameter in model.named_parameters()}, folder / "gradients.safetensors")
    save(expected, folder / "expected.safetensors")
    written = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
    (folder / "open_clip_config.json").write_text(json.dumps(written, indent=2) + "\n")


def greedy(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Decodes greedily from token 1 to 9 tokens; every token after a 30 is 0."""
    text = torch.ones(len(images), 1, dtype=torch.long)
    while text.shape[1] < 9:
        token = model(images, text, output_labels=False)["logits"][:, -1].argmax(dim=1)
        token = torch.where((text == 30).any(dim=1), 0, token)
        text = torch.cat([text, token[:, None]], dim=1)
    return text


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def sizes() -> None:
    """Records configs and numbers of parameters of published models."""
    described = {}
    for name in PUBLISHED:
        config = open_clip.get_model_config(name)
        with torch.device("meta"):
            model = make(config)
        described[name] = {"model_cfg": config, "parameters": sum(p.numel() for p in model.parameters())}
    (FOLDER / "open_clip_sizes.json").write_text(json.dumps(described, indent=2) + "\n")


if __name__ == "__main__":
    for case, config in CASES.items():
        record(case, config)
    sizes()

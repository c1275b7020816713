"""The PyTorch models that ours are timed against: transformers' ViT and ViTMAE, with its fused attention (SDPA)."""

import importlib
from collections.abc import Callable, Mapping

import numpy as np

from vitvlm.core.config import ConfigError


def require(threads: int) -> None:
    """Loads PyTorch and transformers and gives PyTorch as many threads as JAX has.

    Raises ConfigError if one of them is not installed.
    """
    for package in ("torch", "transformers"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise ConfigError(
                f'--peers: {package} is not installed: pip install "vitvlm[test]", or time ours alone with --nopeers'
            ) from None
    importlib.import_module("torch").set_num_threads(threads)


def make_step(
    family: str, sizes: Mapping[str, int], image: np.ndarray, label: np.ndarray, classes: int
) -> Callable[[], None]:
    """One call is one forward and backward pass of the peer, float32, in training mode.

    Args:
      family: "vit" (cross-entropy) or "mae" (norm_pix loss).
      sizes: width, depth, heads, mlp_width and patch_size.
      image [B, H, H, 3], label [B]; classes: S, the width of ViT's head.
    """
    import torch
    import transformers

    fields = {
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["depth"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["mlp_width"],
        "patch_size": sizes["patch_size"],
        "image_size": image.shape[1],
        "attn_implementation": "sdpa",
    }
    inputs = {"pixel_values": torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))}
    if family == "vit":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**fields, num_labels=classes))
        inputs["labels"] = torch.from_numpy(label).long()
    else:
        model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**fields, norm_pix_loss=True))
    model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**inputs).loss.backward()

    return step

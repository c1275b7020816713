"""Records what timm's and open_clip's evaluation transforms make of small images.

    pip install --no-deps timm torchvision open_clip_torch && python tests/parity/recorded/record_pixels.py

writes pixels.npz beside this file: the images, and for each case its settings as JSON and its pixels as grey levels.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# torchvision of another build of PyTorch has no compiled operators; its transforms of images need none.
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms", "roi_align"):
    library.define(f"{name}(Tensor a) -> Tensor")

from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402
from timm.data import create_transform, resolve_data_config  # noqa: E402

SHAPES = ((61, 47), (40, 97), (5, 33), (90, 90), (17, 18))
TIMM = (
    {"input_size": [3, 16, 16], "crop_mode": "center"},
    {"input_size": [3, 15, 15], "crop_pct": 0.9, "interpolation": "bilinear"},
    {"input_size": [3, 16, 16], "crop_pct": 1.0, "interpolation": "lanczos", "mean": [0.5, 0.5, 0.5]},
    {"input_size": [3, 24, 17], "crop_pct": 0.95, "interpolation": "hamming"},
    {"input_size": [3, 21, 24], "crop_pct": 0.9, "crop_mode": "squash"},
    {"input_size": [3, 16, 16], "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "box"},
    {"input_size": [3, 16, 21], "crop_pct": 1.0, "crop_mode": "border"},
    {"input_size": [3, 19, 19], "crop_pct": 0.875, "crop_mode": "border", "std": [0.25, 0.5, 0.2]},
    {"input_size": [3, 16, 16], "crop_pct": 1.2},
    {"input_size": [3, 16, 16], "test_input_size": [3, 20, 20], "test_crop_pct": 1.0, "crop_pct": None},
)
OPEN_CLIP = (
    {"size": 16},
    {"size": [15, 15], "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    {"size": [24, 17], "interpolation": "bilinear"},
    {"size": [13, 20], "resize_mode": "squash", "interpolation": "bilinear"},
    {"size": [16, 16], "resize_mode": "longest", "fill_color": 127},
    {"size": [16, 21], "resize_mode": "longest"},
)


def grey_levels(tensor: torch.Tensor, mean: list, std: list) -> np.ndarray:
    """uint8 [H, W, 3] before it was normalised; whole numbers by construction."""
    levels = 255 * (tensor.permute(1, 2, 0) * torch.tensor(std) + torch.tensor(mean))
    assert (levels - levels.round()).abs().max() < 1e-2
    return levels.round().to(torch.uint8).numpy()


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]
    recorded = {f"image/{i}": image for i, image in enumerate(images)}
    for i, described in enumerate(TIMM):
        settings = resolve_data_config({}, pretrained_cfg=described)
        transform = create_transform(**settings)
        recorded[f"timm/{i}"] = json.dumps(described)
        for j, image in enumerate(images):
            pixels = transform(Image.fromarray(image))
            recorded[f"timm/{i}/{j}"] = grey_levels(pixels, settings["mean"], settings["std"])
    for i, described in enumerate(OPEN_CLIP):
        settings = PreprocessCfg(**described)
        transform = image_transform_v2(settings, is_train=False)
        recorded[f"open_clip/{i}"] = json.dumps(described)
        for j, image in enumerate(images):
            pixels = transform(Image.fromarray(image))
            recorded[f"open_clip/{i}/{j}"] = grey_levels(pixels, settings.mean, settings.std)
    np.savez_compressed(Path(__file__).with_name("pixels.npz"), **recorded)

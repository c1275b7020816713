"""Conversion between NumPy pixels, uint8 [H, W, C], and Pillow images."""

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

Pixels = UInt8[np.ndarray, "H W C"]
NewPixels = UInt8[np.ndarray, "H2 W2 C2"]  # of another size, or with other channels

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def to_pillow(pixels: Shaped[np.ndarray, "H W C"]) -> Image.Image:
    """A Pillow image of uint8 pixels with 1, 3 or 4 channels. Raises ValueError for floats."""
    if pixels.dtype != np.uint8:
        raise ValueError(f"works on uint8 pixels, not on {pixels.dtype}: put it before normalize")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def from_pillow(image: Image.Image) -> Pixels:
    """Pixels [H, W, C] of an image of mode L, RGB or RGBA."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def interpolation(name: str) -> Image.Resampling:
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation {name!r}: there is {', '.join(INTERPOLATIONS)}, fast")
    return INTERPOLATIONS[name]

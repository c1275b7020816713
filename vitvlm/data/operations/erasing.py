"""Random erasing (Zhong et al. 2017, algorithm 1)."""

import math

import numpy as np

from vitvlm.data.operations.parsing import image_operation


@image_operation("random_erasing", random=True)
def random_erasing(
    image: np.ndarray,
    probability: float = 0.5,
    area: tuple = (0.02, 0.4),
    ratio: tuple = (0.3, 1 / 0.3),
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Replaces a rectangle by noise, one value per pixel and channel, with this probability.

    Before normalize the noise is uniform in 0..255, as in the paper; after it, standard normal, as in timm's "pixel"
    mode. The rectangle covers a uniform share `area` of the image, its height / width is uniform in `ratio`; tries
    that do not fit are repeated, and after a hundred the image stays as it is.
    """
    if not 0 < area[0] <= area[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"area={area} must lie within (0, 1] and ratio={ratio} be positive, both in rising order")
    if rng.random() >= probability:
        return image
    H, W, C = image.shape
    for _ in range(100):
        pixels, shape = H * W * rng.uniform(*area), rng.uniform(*ratio)
        height, width = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < height < H and 0 < width < W:
            top, left = rng.integers(H - height + 1), rng.integers(W - width + 1)
            erased = image.copy()
            erased[top : top + height, left : left + width] = _noise(image.dtype, (height, width, C), rng)
            return erased
    return image


def _noise(dtype: np.dtype, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape, dtype=np.float32)

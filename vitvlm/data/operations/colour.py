"""Channels and value ranges."""

import functools

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from vitvlm.core.config import suggest
from vitvlm.data.operations.parsing import Pipeline, image_operation
from vitvlm.data.operations.pixels import Pixels, from_pillow, to_pillow

# Mean and standard deviation per channel of pixels in [0, 1].
STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    "unit": ((0.0,), (1.0,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "emoji": ((0.8146, 0.7628, 0.7013), (0.2973, 0.2942, 0.3592)),
}


@image_operation("normalize")
def normalize(
    image: Shaped[np.ndarray, "H W C"],
    mean: str | float | tuple = "half",
    std: float | tuple | None = None,
    *,
    out: Float[np.ndarray, "_H _W _C"] | None = None,
) -> Float[np.ndarray, "H W C"]:
    """float32 (pixels / 255 - mean) / std: by name ("imagenet", "half", "unit", …) or by numbers.

    "half", the default, gives [-1, 1]; "unit" gives [0, 1].
    """
    if image.dtype != np.uint8:
        raise ValueError("works on uint8 pixels: put it after decode, once")
    H, W, C = image.shape
    scale, offset = _scale_and_offset(mean, std, W, C)
    if out is None or out.shape != image.shape:
        out = np.empty(image.shape, np.float32)
    rows = out.reshape(H, W * C)  # as long as they are, not C numbers at a time
    np.multiply(image.reshape(H, W * C), scale, out=rows)
    rows -= offset
    return out


@image_operation("grey")
def grey(image: Pixels) -> UInt8[np.ndarray, "H W 1"]:
    """One channel: 0.299 red + 0.587 green + 0.114 blue."""
    return from_pillow(to_pillow(image).convert("L"))


@image_operation("rgb")
def rgb(image: Pixels) -> UInt8[np.ndarray, "H W 3"]:
    """Three channels: grey is repeated, an alpha channel dropped."""
    return from_pillow(to_pillow(image).convert("RGB"))


def statistics(
    mean: str | float | tuple = "half", std: float | tuple | None = None
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Mean and standard deviation per channel that the arguments of `normalize` stand for, float64."""
    if isinstance(mean, str):
        if std is not None:
            raise ValueError(f"give a name or numbers, not {mean!r} and std={std!r}")
        if mean not in STATISTICS:
            raise ValueError(f"statistics {mean!r}: {suggest(mean, STATISTICS)}")
        mean, std = STATISTICS[mean]
    elif std is None:
        raise ValueError(f"mean={mean!r} needs a std")
    mean, std = np.atleast_1d(np.array(mean, np.float64)), np.atleast_1d(np.array(std, np.float64))
    if mean.shape != std.shape or (std <= 0).any():
        raise ValueError(f"mean {mean.tolist()} and std {std.tolist()} must be as many, and std positive")
    return mean, std


def normalization(pipeline: Pipeline) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]] | None:
    """Mean and standard deviation per channel by which a pipeline's `normalize` goes; None if it has none."""
    for operation in pipeline.operations:
        if operation.function.name == "normalize":
            return statistics(*operation.positional, **operation.named)
    return None


@functools.lru_cache
def _scale_and_offset(
    mean: str | float | tuple, std: float | tuple | None, W: int, C: int
) -> tuple[Float[np.ndarray, " WC"], Float[np.ndarray, " WC"]]:
    """Factor and offset for the W C numbers of a row of pixels, 0 to 255: x * factor - offset is normalised."""
    means, stds = statistics(mean, std)
    if len(means) not in (1, C):
        raise ValueError(f"{mean!r} has {len(means)} channels, the image {C}: decode(1) gives grey, decode(3) RGB")
    return np.resize(1 / (255 * stds), W * C).astype(np.float32), np.resize(means / stds, W * C).astype(np.float32)

"""Settings of image processors of `transformers` as numbers and operations: sizes, methods, means and deviations."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.families import Json

METHODS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers


# Of every class; "size", "resample", "image_mean" and "image_std" are each one's own.
COMMON = MappingProxyType(
    {
        "do_convert_rgb": None,  # `decode` always makes the channels that the model has
        "do_resize": True,
        "default_to_square": True,
        "do_center_crop": False,
        "crop_size": None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_pad": False,
        "pad_size": None,
    }
)


def resized(settings: Json, where: str) -> list[str]:
    """Resizes to a square, to (height, width), or the shorter side to a length."""
    size, method = size_of(settings, where), method_of(settings, where)
    if "shortest_edge" in size:
        return [f"resize_small({size['shortest_edge']}, {method!r})"]
    return [f"resize({(size['height'], size['width'])}, {method!r})"]


@dataclasses.dataclass(frozen=True)
class Processor:
    """A class of image processors.

    Fields:
      defaults: of all its settings; a key that is not here is unknown to the class.
      resize: the settings and the file's name to the operations that resize; last: to those after all others.
      tiles: the settings, the channels, config.json and the file's name to all operations, where images become several;
        a pad there is of a batch, whose masks say what is none.
      described: the inverse, of an operation string, or None for operations that are not the class's.
    """

    defaults: Json
    resize: Callable[[Json, str], list[str]] = resized
    last: Callable[[Json, str], list[str]] = lambda settings, where: []
    tiles: Callable[[Json, int, Json, str], str] | None = None
    described: Callable[[str], dict[str, Any] | None] = lambda text: None


def size_of(settings: Json, where: str) -> dict[str, int]:
    """Returns {"shortest_edge"} or {"height", "width"}; the class's default_to_square decides for a bare number."""
    size = settings["size"]
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"} and is_side(size["shortest_edge"]):
        return dict(size)
    if is_side(size) and not settings["default_to_square"]:
        return {"shortest_edge": size}
    height, width = sides_of(size, "size", where)
    return {"height": height, "width": width}


def sides_of(size: Any, name: str, where: str) -> tuple[int, int]:
    """Returns (height, width); a single number is both."""
    sides = (size, size) if is_side(size) else size
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        sides = size["height"], size["width"]
    if isinstance(sides, list | tuple) and len(sides) == 2 and all(map(is_side, sides)):
        return tuple(sides)
    shortest = ", a shortest_edge" if name == "size" else ""
    raise WeightsError(f"{where}: {name} {size!r}; write a number{shortest}, or height and width")


def is_side(value: Any) -> bool:
    return type(value) is int and value > 0


def method_of(settings: Json, where: str) -> str:
    number = settings["resample"]
    if number not in METHODS or isinstance(number, bool):
        raise WeightsError(f"{where}: resample {number!r}; there is: {METHODS}")
    return METHODS[number]


def normalization(settings: Json, channels: int, where: str) -> str:
    """One mean and deviation per channel, of pixels in [0, 1], for all that is done to values.

    With factor f, offset 1 or 0, mean m and deviation s, each from the file or without effect, a pixel p of 0 to 255
    becomes (f p - offset - m) / s, which is (p / 255 - (m + offset) / (255 f)) / (s / (255 f)).
    """
    scales, normalizes = settings["do_rescale"], settings["do_normalize"]
    again = settings.get("include_top", False)  # EfficientNet's classifiers divide by the deviation once more
    factor = number_of(settings, "rescale_factor", where) if scales else 1.0
    offset = 1.0 if scales and settings.get("rescale_offset") else 0.0
    mean = _per_channel(settings, "image_mean", channels, where) if normalizes else (0.0,)
    deviation = _per_channel(settings, "image_std", channels, where) if normalizes or again else (1.0,)
    std = deviation if normalizes else (1.0,) * len(deviation)
    if again:
        std = tuple(a * b for a, b in zip(std, deviation))
    mean = tuple(mean) * (len(std) // len(mean))
    if abs(255 * factor - 1) > 1e-9 or offset:
        mean, std = (tuple(float(f"{x / (255 * factor):.9g}") for x in xs) for xs in ([m + offset for m in mean], std))
    if mean == (0.0,) and std == (1.0,):
        return "normalize('unit')"
    if min(std) <= 0:
        raise WeightsError(f"{where}: image_std {settings['image_std']!r} must be above 0")
    return f"normalize({mean}, {std})"


def _per_channel(settings: Json, key: str, channels: int, where: str) -> tuple[float, ...]:
    value = settings[key]
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * channels
    if len(values) != channels or not all(map(_is_number, values)):
        raise WeightsError(f"{where}: {key} {value!r}; write a number, or one for each of {channels} channels")
    return tuple(map(float, values))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def number_of(settings: Json, key: str, where: str) -> float:
    value = settings[key]
    if not _is_number(value) or value <= 0:
        raise WeightsError(f"{where}: {key} {value!r}; write a number above 0")
    return value

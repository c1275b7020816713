"""timm's preprocessing for evaluation, a `pretrained_cfg`, as an operation string and back."""

import math
from collections.abc import Sequence
from typing import Any

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data.operations.pixels import INTERPOLATIONS
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.families import Json
from vitvlm.pretrained.image_steps import near_misses, pair, take_apart

# What timm takes where a pretrained_cfg says nothing, or null.
DEFAULTS = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
SAID = DEFAULTS.keys() - {"input_size"}
# Change no pixel of timm's default evaluation, which is at `input_size`: `test_input_size` and `test_crop_pct` are for
# another one that has to be asked for.
HARMLESS = {
    *("test_input_size", "test_crop_pct", "min_input_size", "fixed_input_size", "pool_size", "test_pool_size"),
    *("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag", "custom_load"),
    *("num_classes", "label_offset", "label_names", "label_descriptions", "first_conv", "classifier", "license"),
    *("description", "origin_url", "paper_name", "paper_ids", "notes"),
}


def operations(source: Json) -> str | None:
    """The same image to the same array as timm's evaluation at `input_size`; see its crop_mode.

    center: resized to cover input_size / crop_pct, and the middle. squash: resized to input_size / crop_pct whatever
    the shape, and the middle. border: resized to lie within input_size / crop_pct, and the middle, within a border of
    the mean colour. None if the source says nothing of all this but the size.

    Raises WeightsError for a key or a value that is not known.
    """
    for key in source:
        if key not in DEFAULTS and key not in HARMLESS:
            raise WeightsError(
                f"config.json: pretrained_cfg.{key} = {source[key]!r} is not known; take it out of the file if it "
                f"changes no pixel; {suggest(key, DEFAULTS)}"
            )
    if not source.keys() & SAID:
        return None
    settings = DEFAULTS | {key: value for key, value in source.items() if key in DEFAULTS and value}
    _check_numbers(settings)
    method, mode = settings["interpolation"], settings["crop_mode"]
    if method not in INTERPOLATIONS:
        raise WeightsError(f"config.json: pretrained_cfg.interpolation {method!r}; {suggest(method, INTERPOLATIONS)}")
    channels, *size = settings["input_size"]
    scale = tuple(math.floor(side / settings["crop_pct"]) for side in size)
    fill = 0  # of what is smaller than the crop
    if mode == "squash":
        resize = f"resize({scale}, {method!r})"
    elif mode == "center" and scale[0] == scale[1]:
        resize = f"resize_small({scale[0]}, {method!r})"
    elif mode == "center":
        resize = f"resize_cover({scale}, {method!r})"
    elif mode == "border":
        resize, fill = f"resize_contain({scale}, {method!r})", _mean_colour(settings["mean"])
    else:
        raise WeightsError(f"config.json: pretrained_cfg.crop_mode {mode!r}; there is: border, center, squash")
    padded = f", {fill}" if mode == "border" or any(a < b for a, b in zip(scale, size)) else ""
    crop = f"central_crop({tuple(size)}{padded}, rounding='even')"
    normalize = f"normalize({tuple(settings['mean'])}, {tuple(settings['std'])})"
    return f"decode({channels})|{resize}|{crop}|{normalize}"


def _check_numbers(settings: Json) -> None:
    """Raises WeightsError for numbers that are none, or not as many as there are channels."""
    size, share = settings["input_size"], settings["crop_pct"]
    if not (_are_numbers(size, 3) and all(type(side) is int and side > 0 for side in size)):
        raise _refused("input_size", size, "write [channels, height, width]")
    if not (_are_numbers([share], 1) and share > 0 and min(size[1:]) / share >= 1):
        raise _refused("crop_pct", share, f"write a share of {size[1]}x{size[2]} pixels")
    for key in ("mean", "std"):
        if not _are_numbers(settings[key], size[0]):
            raise _refused(key, settings[key], f"write a number for each of {size[0]} channels")
    if min(settings["std"]) <= 0:
        raise _refused("std", settings["std"], "write numbers above 0")


def _are_numbers(values: Any, count: int) -> bool:
    given = isinstance(values, (list, tuple)) and len(values) == count
    return given and all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _refused(key: str, value: Any, advice: str) -> WeightsError:
    return WeightsError(f"config.json: pretrained_cfg.{key} {value!r}; {advice}")


def described(text: str, size: Sequence[int]) -> tuple[dict[str, Any], list[str]]:
    """The keys of a pretrained_cfg for an operation string, and a list of small differences.

    Args:
      size: height and width of the model's images, its `input_size`.

    Raises ConfigError, with the reason, for operations that timm's evaluation does not follow.
    """
    steps, size = take_apart(text), tuple(size)
    if steps.resize is None:
        raise ConfigError("timm always resizes, and these operations do not")
    name, arguments = steps.resize
    method = "bilinear" if arguments["method"] == "fast" else arguments["method"]
    scale, fill = pair(arguments["size"]), arguments.get("fill")
    if name == "resize_pad":
        cut = scale
    elif steps.crop is not None:
        cut, fill = pair(steps.crop["size"]), steps.crop["fill"]
    else:
        cut = None if name in ("resize_small", "resize_cover", "resize_contain") else scale
    if cut != size:
        raise ConfigError(f"timm cuts the middle {size[0]}x{size[1]}, the model's image_size; these operations do not")
    mode = {"resize": "squash", "resize_contain": "border", "resize_pad": "border"}.get(name, "center")
    if mode == "border" and fill not in (_mean_colour(steps.mean), None):
        raise ConfigError(f"timm's border has the mean colour {_mean_colour(steps.mean)}, not {fill}")
    if mode != "border" and fill not in (0, None):
        raise ConfigError(f"timm's border is black, not {fill}")
    if mode == "center" and (name == "resize_small") != (scale[0] == scale[1] and size[0] == size[1]):
        raise ConfigError(f"timm does not go by {name} to {scale} before it cuts {size}")
    found = {"interpolation": method, "crop_mode": mode, "crop_pct": _crop_pct(size, scale)}
    return found | {"mean": list(steps.mean), "std": list(steps.std)}, near_misses(steps, "even")


def _crop_pct(size: tuple[int, ...], scale: tuple[int, ...]) -> float:
    """Returns the crop_pct from which timm computes this scale."""
    for share in (1.0, round(size[0] / scale[0], 3), size[0] / scale[0], size[0] / (scale[0] + 0.5)):
        if all(math.floor(side / share) == scaled for side, scaled in zip(size, scale)):
            return share
    raise ConfigError(f"no crop_pct makes {scale} of {size}")


def _mean_colour(mean: Sequence[float]) -> tuple[int, ...]:
    return tuple(round(255 * value) for value in mean)

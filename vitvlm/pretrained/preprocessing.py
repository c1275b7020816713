"""A Hugging Face folder's preprocessor_config.json as an operation string: "decode(3)|resize((224, 224), …)|…"."""

from collections.abc import Mapping
from typing import Any

from vitvlm.pretrained.entries import WeightsError

METHODS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
BILINEAR = 2


def operations(source: Mapping[str, Any], channels: int) -> str:
    """The same image to the same array: resize, crop and normalise as the source says.

    Args:
      source: the contents of preprocessor_config.json.
      channels: of the model's images.

    Raises WeightsError for a setting that our operations cannot follow.
    """
    steps = [f"decode({channels})"]
    if source.get("do_resize", True) and "size" in source:
        steps.append(_resize(source))
    if source.get("do_center_crop", False):
        steps.append(f"central_crop({_sides(source['crop_size'], 'crop_size')})")
    mean_and_std = _normalization(source)
    steps.append("normalize('unit')" if mean_and_std is None else "normalize({}, {})".format(*mean_and_std))
    return "|".join(steps)


def _normalization(source: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation, per channel, of pixels in [0, 1]; None if there are none.

    EfficientNet's and ALIGN's say besides: `rescale_offset`, pixels times the factor, less 1; and `include_top`, the
    result divided by the deviation once more.
    """
    factor, offset = source.get("rescale_factor", 1 / 255), source.get("rescale_offset", False)
    if not source.get("do_rescale", True) or (abs(factor * 255 - 1) > 1e-6 and not offset):
        raise WeightsError(
            f"preprocessor_config.json: do_rescale {source.get('do_rescale')}, rescale_factor {factor}: pixels are "
            f"divided by 255 here; change the file if the model allows"
        )
    normalizes = source.get("do_normalize", True) and "image_mean" in source
    if not (normalizes or offset or source.get("include_top")):
        return None
    deviations = tuple(source.get("image_std", (1.0,)))
    mean = tuple(source["image_mean"]) if normalizes else (0.0,) * len(deviations)
    std = deviations if normalizes else (1.0,) * len(deviations)
    if source.get("include_top"):
        std = tuple(a * b for a, b in zip(std, deviations))
    if offset:  # factor x - 1 = mean is where 255 factor (x / 255) = mean + 1
        mean, std = (tuple(round(x / (255 * factor), 7) for x in xs) for xs in ([m + 1 for m in mean], std))
    return mean, std


def _resize(source: Mapping[str, Any]) -> str:
    number = source.get("resample", BILINEAR)
    if number not in METHODS:
        raise WeightsError(f"preprocessor_config.json: resample {number!r}; there is: {METHODS}")
    size = source["size"]
    if isinstance(size, int) and "CLIP" in str(
        source.get("image_processor_type", source.get("feature_extractor_type"))
    ):
        size = {"shortest_edge": size}  # older files of CLIP; a single number is a square's side elsewhere
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return f"resize_small({size['shortest_edge']}, {METHODS[number]!r})"
    return f"resize({_sides(size, 'size')}, {METHODS[number]!r})"


def _sides(size: Any, name: str) -> tuple[int, int]:
    """(height, width); a single number, as older files have it, is both."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and set(size) == {"height", "width"}:
        return size["height"], size["width"]
    raise WeightsError(f"preprocessor_config.json: {name} {size!r}; a number, or height and width, is understood")

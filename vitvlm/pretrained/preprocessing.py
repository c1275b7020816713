"""The preprocessor_config.json of `transformers` as an operation string: "decode(3)|resize((224, 224), …)|…".

Every key is followed, known to change no pixel, or an error that names it; what the file leaves out is as its class of
image processor has it. Their processors that resize by Pillow are meant, by which published models were trained.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vitvlm.core.config import ConfigError, suggest
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.families import Json
from vitvlm.pretrained.image_settings import (
    COMMON,
    METHODS,
    Processor,
    is_side,
    method_of,
    normalization,
    number_of,
    resized,
    sides_of,
    size_of,
)
from vitvlm.pretrained.image_steps import near_misses, pair, take_apart
from vitvlm.pretrained.tile_settings import TILING

FILE = "preprocessor_config.json"
NO_CONFIG: Json = MappingProxyType({})
BILINEAR, BICUBIC = 2, 3
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Change no pixel: who wrote the file, how arrays are laid out, what becomes of segmentation maps.
HARMLESS = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "_valid_processor_keys"),
    *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "image_seq_length"),
    *("model_input_names", "transformers_version", "use_fast", "do_reduce_labels", "reduce_labels"),
}


def _resize_and_crop(settings: Json, where: str) -> list[str]:
    """Resizes as ConvNext does: the centre of a larger image below 384 pixels, the whole image squeezed from there."""
    size, method = size_of(settings, where), method_of(settings, where)
    if "shortest_edge" not in size:
        raise WeightsError(f"{where}: size {size!r}; ConvNextImageProcessor needs a number or a shortest_edge")
    side = size["shortest_edge"]
    if side >= 384:
        return [f"resize({(side, side)}, {method!r})"]
    larger = int(side / number_of(settings, "crop_pct", where))
    if not larger:
        raise WeightsError(f"{where}: crop_pct {settings['crop_pct']!r} leaves no pixel of {side}")
    return [f"resize_small({larger}, {method!r})", _crop((side, side), padded=larger < side)]


def _fit_patches(settings: Json, where: str) -> list[str]:
    """Resizes to whole patches, at most as many as the model takes; the `size` in the settings does not count."""
    return [f"fit_patches({_patches(settings, where)}, {method_of(settings, where)!r})"]


def _patches(settings: Json, where: str) -> str:
    numbers = [settings[key] for key in ("patch_size", "max_num_patches")]
    if not all(map(is_side, numbers)):
        raise WeightsError(f"{where}: patch_size, max_num_patches {numbers}; write two whole numbers above 0")
    return ", ".join(map(str, numbers))


def _processor(
    size: Json,
    resample: int,
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    resize: Callable[[Json, str], list[str]] = resized,
    **settings: Any,
) -> Processor:
    mean, std = statistics
    defaults = {**COMMON, "size": size, "resample": resample, "image_mean": mean, "image_std": std, **settings}
    return Processor(defaults, resize)


_HALF = (0.5,) * 3, (0.5,) * 3


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


_CLIP = _processor(
    {"shortest_edge": 224},
    BICUBIC,
    CLIP,
    default_to_square=False,
    crop_size=_square(224),
    do_center_crop=True,
)
PROCESSORS: Mapping[str, Processor] = {
    "ViTImageProcessor": _processor(_square(224), BILINEAR, _HALF),
    "DeiTImageProcessor": _processor(_square(256), BICUBIC, _HALF, crop_size=_square(224), do_center_crop=True),
    "BeitImageProcessor": _processor(_square(224), BICUBIC, _HALF, crop_size=_square(224)),
    "BitImageProcessor": _CLIP,
    "CLIPImageProcessor": dataclasses.replace(_CLIP, defaults={**_CLIP.defaults, "use_square_size": False}),
    "SiglipImageProcessor": _processor(_square(224), BICUBIC, _HALF, default_to_square=False),
    "BlipImageProcessor": _processor(_square(384), BICUBIC, CLIP),
    "ConvNextImageProcessor": _processor(
        {"shortest_edge": 384}, BICUBIC, _HALF, _resize_and_crop, default_to_square=False, crop_pct=224 / 256
    ),
    "EfficientNetImageProcessor": _processor(
        _square(346), BICUBIC, _HALF, crop_size=_square(289), rescale_offset=False, include_top=True
    ),
    "Siglip2ImageProcessor": dataclasses.replace(
        _processor(NO_CONFIG, BILINEAR, _HALF, _fit_patches, patch_size=16, max_num_patches=256),
        last=lambda settings, where: [f"patchify({_patches(settings, where)})"],
    ),
    **TILING,
}

# The class of files that name none, by config.json's model_type.
BY_MODEL_TYPE = {
    "vit": "ViTImageProcessor",
    "vit_mae": "ViTImageProcessor",
    "swin": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "efficientnet": "EfficientNetImageProcessor",
    "align": "EfficientNetImageProcessor",
    "align_vision_model": "EfficientNetImageProcessor",
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "blip": "BlipImageProcessor",
    "blip-2": "BlipImageProcessor",
    "instructblip": "BlipImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "siglip2": "Siglip2ImageProcessor",
    "paligemma": "SiglipImageProcessor",
    "idefics3": "Idefics3ImageProcessor",
    "smolvlm": "SmolVLMImageProcessor",
    "llava": "CLIPImageProcessor",
    "llava_next": "LlavaNextImageProcessor",
    "qwen2_vl": "Qwen2VLImageProcessor",
    "siglip2_vision_model": "Siglip2ImageProcessor",
}


def operations(source: Json, channels: int, config: Json = NO_CONFIG, where: str = FILE) -> str:
    """The same image to the same array: resized, cropped, scaled and normalised as the source and its class say.

    Args:
      source: the contents of preprocessor_config.json.
      channels: of the model's images.
      config: config.json, whose model_type tells the class of a file that does not name it.
      where: the file's name, for errors.

    Raises WeightsError, naming the key, for a class, a key or a value that our operations cannot follow.
    """
    settings = complete(source, config, where)
    processor = PROCESSORS[processor_name(source, config, where)]
    if processor.tiles is not None:
        return processor.tiles(settings, channels, config, where)
    steps = [f"decode({channels})"]
    if settings["do_resize"]:
        steps += processor.resize(settings, where)
    if settings["do_center_crop"]:
        if settings["crop_size"] is None:
            raise WeightsError(f"{where}: do_center_crop without a crop_size")
        steps.append(_central_crop(settings, where))
    return "|".join([*steps, normalization(settings, channels, where), *processor.last(settings, where)])


def processor_name(source: Json, config: Json = NO_CONFIG, where: str = FILE) -> str:
    """The class of image processor, a key of PROCESSORS, by its name of today.

    Raises WeightsError for a class that is not among them, and for a file that names none of a model without its own.
    """
    named = source.get("image_processor_type") or source.get("feature_extractor_type")
    named = named or config.get("image_processor_type") or BY_MODEL_TYPE.get(config.get("model_type"))
    if named is None:
        raise WeightsError(
            f"{where}: names no image_processor_type, and none is known of config.json's model_type "
            f"{config.get('model_type')!r}; there is: {', '.join(PROCESSORS)}"
        )
    name = str(named).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if name not in PROCESSORS:
        raise WeightsError(f"{where}: image_processor_type {named!r}; {suggest(name, PROCESSORS)}")
    return name


def complete(source: Json, config: Json = NO_CONFIG, where: str = FILE) -> dict[str, Any]:
    """All settings of the source's class of processor: the source's own, and the class's where it says nothing.

    A null leaves a step out, and is else as good as nothing.

    Raises WeightsError for a key that neither the class has nor is harmless.
    """
    name = processor_name(source, config, where)
    defaults = PROCESSORS[name].defaults
    flags = {key for key, value in defaults.items() if isinstance(value, bool)}
    given = {key: value for key, value in source.items() if value is not None and key not in HARMLESS}
    given |= {key: False for key in flags if key in source and source[key] is None}
    for key, value in given.items():
        if key not in defaults and not (key.startswith("do_") and value is False):  # a step that is not taken
            raise WeightsError(
                f"{where}: {key} = {value!r}: {name} has no such setting; take it out of the file if it changes no "
                f"pixel; {suggest(key, defaults)}"
            )
        if key in flags and not isinstance(value, bool):
            raise WeightsError(f"{where}: {key} = {value!r}; write true or false")
    settings = {**defaults, **given}
    if settings["do_pad"] and PROCESSORS[name].tiles is None:
        raise WeightsError(f"{where}: do_pad to {settings['pad_size']!r}: images are not padded here")
    if settings.get("use_square_size"):
        settings["size"] = _square(defaults["size"]["shortest_edge"])
    return settings


def described(text: str, config: Json) -> tuple[dict[str, Any], list[str]]:
    """The contents of preprocessor_config.json for an operation string, and a list of small differences.

    Args:
      config: config.json, whose model_type tells which class of image processor its readers expect.

    Raises ConfigError, with the reason, for operations that no image processor follows.
    """
    for processor in PROCESSORS.values():
        if (found := processor.described(text)) is not None:
            return found, []
    steps = take_apart(text)
    name = BY_MODEL_TYPE.get(config.get("model_type"), "ViTImageProcessor")
    small = steps.resize is not None and steps.resize[0] == "resize_small"
    if small or steps.crop:  # in every release of `transformers`, one of these two does
        name = name if name == "BitImageProcessor" else "CLIPImageProcessor"
    elif PROCESSORS[name].resize is not resized or PROCESSORS[name].tiles is not None:
        name = "ViTImageProcessor"
    found = {key: value for key, value in PROCESSORS[name].defaults.items() if value is not None}
    found |= {"image_processor_type": name, "do_resize": steps.resize is not None, "do_center_crop": bool(steps.crop)}
    found |= {"image_mean": list(steps.mean), "image_std": list(steps.std), "do_convert_rgb": steps.channels == 3}
    found |= {key: False for key in ("include_top", "rescale_offset") if key in found}
    if vision := config.get("model_type") == "paligemma" and config.get("vision_config"):
        # Its processor asks for the number of image tokens.
        found["image_seq_length"] = (vision["image_size"] // vision["patch_size"]) ** 2
    if steps.resize is not None:
        operation, arguments = steps.resize
        if operation not in ("resize", "resize_small"):
            raise ConfigError(f"{operation} has no counterpart in an image processor of transformers")
        method = "bilinear" if arguments["method"] == "fast" else arguments["method"]
        found["resample"] = next(number for number, name in METHODS.items() if name == method)
        found["size"] = {"shortest_edge": arguments["size"]} if small else _square_or_not(arguments["size"])
    if steps.crop is not None:
        if steps.crop["fill"] not in (None, 0):
            raise ConfigError(f"a border of {steps.crop['fill']}: the border of an image processor is black")
        found["crop_size"] = _square_or_not(steps.crop["size"])
    return found, near_misses(steps, "down")


def _square_or_not(size: int | tuple[int, int]) -> dict[str, int]:
    height, width = pair(size)
    return {"height": height, "width": width}


def _central_crop(settings: Json, where: str) -> str:
    height, width = sides_of(settings["crop_size"], "crop_size", where)
    if not settings["do_resize"]:
        return _crop((height, width), padded=True)
    size = size_of(settings, where)
    least = (size["shortest_edge"],) * 2 if "shortest_edge" in size else (size["height"], size["width"])
    return _crop((height, width), padded=least[0] < height or least[1] < width)


def _crop(size: tuple[int, int], padded: bool) -> str:
    """The middle; if images may be smaller, they get a black border."""
    return f"central_crop({size}, 0)" if padded else f"central_crop({size})"

"""Image processors of `transformers` that make several images of one: Idefics3's, LLaVA-NeXT's and Qwen2-VL's.

They cut one image; several of a prompt are cut one by one. Their operations read `image` and make `images`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.data.operations import colour
from vitvlm.data.operations.parsing import Operation
from vitvlm.data.operations.tiling import GRIDS
from vitvlm.pretrained.entries import WeightsError
from vitvlm.pretrained.families import Json
from vitvlm.pretrained.image_settings import COMMON, METHODS, Processor, is_side, method_of, normalization

HALF = [0.5] * 3
CLIP = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PADDED = {**COMMON, "do_pad": True}


def _joined(cut: str, settings: Json, channels: int, where: str, behind: str = "") -> str:
    """Decodes, cuts, and normalises the pieces."""
    return f"decode({channels})|{cut}|{_of_images(settings, channels, where)}{behind}"


def _of_images(settings: Json, channels: int, where: str, field: str = "images") -> str:
    return f"{normalization(settings, channels, where).removesuffix(')')}, field='{field}')"


def _idefics3(settings: Json, channels: int, config: Json, where: str) -> str:
    """Tiles as large as the model's images. Raises WeightsError for others, whose positions it does not have."""
    tile = _edge(settings, "max_image_size", where)
    vision = config.get("vision_config") or {}
    if tile != vision.get("image_size"):
        raise WeightsError(
            f"{where}: max_image_size {tile}, but the model's images have {vision.get('image_size')} pixels per side"
        )
    longest = _edge(settings, "size", where) if settings["do_resize"] else None
    tokens = (tile // vision["patch_size"] // config["scale_factor"]) ** 2
    method, split = method_of(settings, where), bool(settings["do_image_splitting"])
    cut = f"tile_idefics3({tile}, {tokens}, {longest}, {split}, {method!r}, field='image')"
    return _joined(cut, settings, channels, where)


def _edge(settings: Json, name: str, where: str) -> int:
    size = settings[name]
    if not isinstance(size, Mapping) or set(size) != {"longest_edge"} or not is_side(size["longest_edge"]):
        raise WeightsError(f"{where}: {name} {size!r}; write a longest_edge")
    return size["longest_edge"]


def _described_idefics3(name: str) -> Callable[[str], dict[str, Any] | None]:
    def described(text: str) -> dict[str, Any] | None:
        if (steps := _steps(text, "tile_idefics3")) is None:
            return None
        given = steps["tile_idefics3"].arguments
        return {
            "image_processor_type": name,
            "do_resize": given["longest"] is not None,
            "size": {"longest_edge": given["longest"] or 4 * given["tile"]},
            "max_image_size": {"longest_edge": given["tile"]},
            "do_image_splitting": given["split"],
            "resample": _number(given["method"]),
            **_statistics(steps),
        }

    return described


def _llava_next(settings: Json, channels: int, config: Json, where: str) -> str:
    """Tiles of one side: theirs resize and crop each once more, which changes nothing where all sides agree."""
    size, crop = settings["size"], settings["crop_size"]
    sides = {*(size.values() if isinstance(size, Mapping) else [size])}
    if settings["do_center_crop"]:
        sides |= {*(crop.values() if isinstance(crop, Mapping) else [crop])}
    if len(sides) != 1 or not is_side(tile := next(iter(sides))):
        raise WeightsError(f"{where}: size {size!r}, crop_size {crop!r}; tiles are read that all have one side")
    grids = tuple(tuple(grid) for grid in settings["image_grid_pinpoints"])
    side = tile // config["vision_config"]["patch_size"]
    cut = f"tile_llava_next({tile}, {side}, {grids}, {method_of(settings, where)!r}, field='image')"
    return _joined(cut, settings, channels, where)


def _described_llava_next(text: str) -> dict[str, Any] | None:
    if (steps := _steps(text, "tile_llava_next")) is None:
        return None
    given = steps["tile_llava_next"].arguments
    return {
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": given["tile"]},
        "crop_size": {"height": given["tile"], "width": given["tile"]},
        "image_grid_pinpoints": [list(grid) for grid in given["grids"]],
        "resample": _number(given["method"]),
        **_statistics(steps),
    }


def _qwen2_vl(settings: Json, channels: int, config: Json, where: str) -> str:
    """Patches of an image resized within limits of its pixels; there is room for as many as the largest has."""
    size = settings["size"]
    least = settings["min_pixels"] or size.get("shortest_edge") or size.get("min_pixels")
    most = settings["max_pixels"] or size.get("longest_edge") or size.get("max_pixels")
    patch, merge = settings["patch_size"], settings["merge_size"]
    if not all(map(is_side, (least, most, patch, merge))) or not settings["do_resize"]:
        raise WeightsError(
            f"{where}: size {size!r}, patch_size {patch!r}, merge_size {merge!r}, do_resize {settings['do_resize']!r}: "
            "whole numbers of pixels and patches are read, and a resize"
        )
    room = max(most // patch**2 // merge**2, 1) * merge**2
    resize = f"smart_resize({patch * merge}, {least}, {most}, {method_of(settings, where)!r})"
    normalize = normalization(settings, channels, where)
    return f"decode({channels})|{resize}|{normalize}|merge_patches({patch}, {room}, {merge}, field='image')"


def _described_qwen2_vl(text: str) -> dict[str, Any] | None:
    if (steps := _steps(text, "merge_patches")) is None:
        return None
    if "smart_resize" not in steps:
        raise ConfigError("merge_patches without a smart_resize has no image processor")
    resize, patches = (steps[name].arguments for name in ("smart_resize", "merge_patches"))
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {
            "shortest_edge": resize.get("min_pixels", 3136),
            "longest_edge": resize.get("max_pixels", 1_003_520),
        },
        "patch_size": patches["patch_size"],
        "merge_size": patches["merge"],
        "temporal_patch_size": 2,
        "resample": _number(resize.get("method", "bicubic")),
        **_statistics(steps),
    }


def _steps(text: str, name: str) -> dict[str, Operation] | None:
    """The operations of a string by name; None where one is not among them."""
    steps = {operation.function.name: operation for operation in operations.parse(text).operations}
    return steps if name in steps else None


def _statistics(steps: Mapping[str, Operation]) -> dict[str, Any]:
    if "normalize" not in steps:
        raise ConfigError("it has no normalize")
    given = steps["normalize"].arguments
    mean, std = (list(map(float, each)) for each in colour.statistics(given["mean"], given["std"]))
    mean, std = (each * 3 if len(each) == 1 else each for each in (mean, std))
    return {"image_mean": mean, "image_std": std}


def _number(method: str) -> int:
    return next(number for number, name in METHODS.items() if name == method)


IDEFICS3 = {
    **PADDED,
    "size": {"longest_edge": 1456},
    "max_image_size": {"longest_edge": 364},
    "resample": 1,
    "image_mean": HALF,
    "image_std": HALF,
    "do_image_splitting": True,
    "return_row_col_info": False,
}
TILING: Mapping[str, Processor] = {
    **{
        name: Processor(IDEFICS3, tiles=_idefics3, described=_described_idefics3(name))
        for name in ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
    },
    "LlavaNextImageProcessor": Processor(
        {
            **PADDED,
            "size": {"shortest_edge": 224},
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "resample": 3,
            "image_mean": CLIP[0],
            "image_std": CLIP[1],
            "image_grid_pinpoints": [list(grid) for grid in GRIDS],
            "aspect_ratio_setting": "anyres",
        },
        tiles=_llava_next,
        described=_described_llava_next,
    ),
    "Qwen2VLImageProcessor": Processor(
        {
            **PADDED,
            "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
            "min_pixels": None,
            "max_pixels": None,
            "resample": 3,
            "image_mean": CLIP[0],
            "image_std": CLIP[1],
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
        },
        tiles=_qwen2_vl,
        described=_described_qwen2_vl,
    ),
}

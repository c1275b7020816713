"""Folders as open_clip has them on the hub: open_clip_config.json and open_clip_model.safetensors."""

import json
from pathlib import Path
from typing import Any

from absl import logging

from vitvlm.core.config import ConfigError, suggest
from vitvlm.nn.patches import as_pair
from vitvlm.pretrained import image_steps, texts
from vitvlm.pretrained.entries import Tensors, WeightsError, blamed
from vitvlm.pretrained.families import Json, assemble, image_inputs, still_describes, take_apart, text_inputs
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.open_clip_models import FAMILIES, TEXT, VISION, architecture
from vitvlm.pretrained.tensors import open_folder, open_safetensors, read_json, write_folder
from vitvlm.pretrained.torch_files import open_torch
from vitvlm.pretrained.wrappers import unwrap

CONFIG, SINGLE = "open_clip_config.json", "open_clip_model.safetensors"
FORMATS = (
    (SINGLE, f"{SINGLE}.index.json", open_safetensors),
    ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.bin.index.json", open_torch),
)

# The defaults of PreprocessCfg.
PREPROCESSING = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def open(folder: Path, tensors: Tensors | None = None, **fields: Any) -> Pretrained:
    """A CLIP or CoCa with its weights, preprocessing and tokenizer, as open_clip_config.json says.

    Args:
      tensors: of another file than the folder's own.
      fields: fields of the model that leave its parameters as they are: scan, remat, dtype.

    Raises WeightsError for a folder that is damaged or that we have no table for.
    """
    source = read_json(folder / CONFIG)
    with blamed(folder, folder / CONFIG):
        described = source["model_cfg"]
        vision, text = VISION | described["vision_cfg"], TEXT | described["text_cfg"]
        inputs = image_inputs(vision["image_size"], 3) + text_inputs(text["context_length"])
        family = FAMILIES[architecture(described)]
        inside = unwrap(open_folder(folder, FORMATS) if tensors is None else tensors)
        section, model, variables = assemble(family, described, inside.tensors, inputs, fields)
        preprocessing = operations(source.get("preprocess_cfg", {}), vision["image_size"])
    inside.say(folder)
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=preprocessing,
        texts=texts.open_clip(folder, text["context_length"], text["vocab_size"]),
        source={
            "path": str(folder),
            "format": "open_clip",
            "model": section,
            "config": source,
            "left_out": list(inside.left_out),
        },
    )


def save(loaded: Pretrained, folder: Path) -> None:
    """Writes what `open_clip.create_model("local-dir:FOLDER")` loads.

    A warning tells of preprocessing that open_clip does not follow, in which case it takes CLIP's way, and of what it
    does a little otherwise.

    Raises ConfigError for a model that open_clip cannot express, with the reason.
    """
    families, source, own = FAMILIES, {}, ""
    if loaded.source.get("format") == "open_clip":
        source = loaded.source["config"]
        own = architecture(source["model_cfg"])
        families = {own: FAMILIES[own]} | FAMILIES
    described, tensors = take_apart(families, loaded.model, loaded.variables, "open_clip")
    config = {"model_cfg": described}
    if source and still_describes(FAMILIES[own], source["model_cfg"], loaded.model, loaded.variables, tensors):
        config = source
    config = _with_preprocessing(config, loaded.preprocessing)
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, folder, SINGLE)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if loaded.texts is not None:
        texts.copy_files(loaded.texts, folder)


def _with_preprocessing(config: Json, preprocessing: str | None) -> dict[str, Any]:
    """The config with a preprocess_cfg by which open_clip makes the pixels of the operations; see `save`."""
    size = as_pair((VISION | config["model_cfg"]["vision_cfg"])["image_size"])
    if preprocessing is None or preprocessing == operations(config.get("preprocess_cfg", {}), size):
        return dict(config)
    kept = {key: value for key, value in config.items() if key != "preprocess_cfg"}
    try:
        said, differences = described(preprocessing, tuple(size))
    except ConfigError as error:
        logging.warning("%s does not express the preprocessing, which is %r: %s", CONFIG, preprocessing, error)
        return kept
    for difference in differences:
        logging.warning("%s: %s", CONFIG, difference)
    return kept | {"preprocess_cfg": said}


def operations(source: Json, image_size: int | list[int]) -> str:
    """open_clip's evaluation, normalised at last; see its resize_mode.

    shortest: resized to cover the image size, and the middle. squash: resized whatever the shape. longest: resized to
    lie within it, and a border of fill_color.

    Raises WeightsError for a key or a value that is not known, and for a size other than the model's, which open_clip
    overrides.
    """
    for key in source:
        if key not in PREPROCESSING and key not in ("size", "mode"):
            raise WeightsError(
                f"{CONFIG}: preprocess_cfg.{key} = {source[key]!r} is not known; take it out of the file if it changes "
                f"no pixel; {suggest(key, PREPROCESSING)}"
            )
    source = PREPROCESSING | {key: value for key, value in source.items() if value is not None}
    size, method, mode = tuple(as_pair(image_size)), source["interpolation"], source["resize_mode"]
    if tuple(as_pair(source.get("size", size))) != size:
        raise WeightsError(f"{CONFIG}: preprocess_cfg.size {source['size']!r} is not vision_cfg.image_size {size}")
    if source.get("mode", "RGB") != "RGB":
        raise WeightsError(f"{CONFIG}: preprocess_cfg.mode {source['mode']!r}; there is: RGB")
    method = "bicubic" if method == "random" else method  # which is for training
    if method not in ("bicubic", "bilinear"):
        raise WeightsError(f"{CONFIG}: preprocess_cfg.interpolation {method!r}; there is: bicubic, bilinear")
    if mode == "squash":
        resize = f"resize({size}, {method!r})"
    elif mode == "longest":
        resize = f"resize_pad({size}, {source['fill_color']!r}, {method!r})"
    elif mode == "shortest" and size[0] == size[1]:
        resize = f"resize_small({size[0]}, {method!r})|central_crop({size}, rounding='even')"
    elif mode == "shortest":  # bicubic, whatever the interpolation
        resize = f"resize_cover({size}, 'bicubic')|central_crop({size}, rounding='even')"
    else:
        raise WeightsError(f"{CONFIG}: preprocess_cfg.resize_mode {mode!r}; there is: longest, shortest, squash")
    mean, std = (
        value if isinstance(value, list | tuple) else (value,) * 3 for value in (source["mean"], source["std"])
    )
    return f"decode(3)|{resize}|normalize({tuple(mean)}, {tuple(std)})"


def described(text: str, size: tuple[int, int]) -> tuple[dict[str, Any], list[str]]:
    """A preprocess_cfg for an operation string, and a list of small differences.

    Args:
      size: height and width of the model's images.

    Raises ConfigError, with the reason, for operations that open_clip's evaluation does not follow.
    """
    steps = image_steps.take_apart(text)
    name, arguments = steps.resize or (None, {"size": 0, "method": "bicubic"})
    crop = steps.crop and image_steps.pair(steps.crop["size"])
    mode = {"resize": "squash", "resize_pad": "longest", "resize_small": "shortest", "resize_cover": "shortest"}.get(
        name
    )
    cut = size if mode == "shortest" else None
    covers = "resize_small" if size[0] == size[1] else "resize_cover"
    method = "bilinear" if arguments["method"] == "fast" else arguments["method"]
    wrong = [
        steps.channels != 3 and f"{steps.channels} channels",
        mode is None and f"{name or 'no resize'}",
        image_steps.pair(arguments["size"]) != size
        and f"a resize to {arguments['size']}, other than the model's {size}",
        mode == "shortest" and name != covers and f"{name} to {size}",
        crop != cut and f"a crop of {crop} after {name}",
        method not in ("bicubic", "bilinear") and f"interpolation {method!r}",
        name == "resize_cover" and method != "bicubic" and "bilinear interpolation to a size that is not square",
        steps.crop and steps.crop["fill"] not in (None, 0) and f"a border of {steps.crop['fill']}",
    ]
    if reasons := [reason for reason in wrong if reason]:
        raise ConfigError(f"open_clip's evaluation has no {', and no '.join(reasons)}")
    found = {"interpolation": method, "resize_mode": mode, "mean": list(steps.mean), "std": list(steps.std)}
    found |= {"fill_color": arguments["fill"]} if mode == "longest" else {}
    return found, image_steps.near_misses(steps, "even")

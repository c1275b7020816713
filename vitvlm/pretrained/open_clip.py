"""Folders as open_clip has them on the hub: open_clip_config.json and open_clip_model.safetensors."""

import json
from pathlib import Path
from typing import Any

from vitvlm.nn.patches import as_pair
from vitvlm.pretrained import texts
from vitvlm.pretrained.entries import WeightsError, blamed
from vitvlm.pretrained.families import Json, assemble, image_inputs, still_describes, take_apart, text_inputs
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.open_clip_models import FAMILIES, TEXT, VISION, architecture
from vitvlm.pretrained.tensors import open_folder, open_safetensors, read_json, write_folder
from vitvlm.pretrained.torch_files import open_torch

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
}


def load(folder: Path, **fields: Any) -> Pretrained:
    """A CLIP or CoCa with its weights, preprocessing and tokenizer, as open_clip_config.json says.

    Args:
      fields: fields of the model that leave its parameters as they are: scan, remat, dtype.

    Raises WeightsError for a folder that is damaged or that we have no table for.
    """
    source = read_json(folder / CONFIG)
    with blamed(folder, folder / CONFIG):
        described = source["model_cfg"]
        vision, text = VISION | described["vision_cfg"], TEXT | described["text_cfg"]
        inputs = image_inputs(vision["image_size"], 3) + text_inputs(text["context_length"])
        family = FAMILIES[architecture(described)]
        section, model, variables = assemble(family, described, open_folder(folder, FORMATS), inputs, fields)
        preprocessing = operations(source.get("preprocess_cfg", {}), vision["image_size"])
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=preprocessing,
        texts=texts.open_clip(folder, text["context_length"], text["vocab_size"]),
        source={"path": str(folder), "format": "open_clip", "model": section, "config": source},
    )


def save(loaded: Pretrained, folder: Path) -> None:
    """Writes what `open_clip.create_model("local-dir:FOLDER")` loads.

    Without the config that the weights came with, or of a model that changed since, the file does not say how images
    are preprocessed: open_clip takes CLIP's way then.

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
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(tensors, folder, SINGLE)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if loaded.texts is not None:
        texts.copy_files(loaded.texts, folder)


def operations(source: Json, image_size: int | list[int]) -> str:
    """open_clip's evaluation: the shorter side to the image's, the middle of it, normalised; or a plain resize.

    Raises WeightsError for a way of resizing that our operations cannot follow.
    """
    source = PREPROCESSING | source
    size, method, mode = as_pair(source.get("size", image_size)), source["interpolation"], source["resize_mode"]
    if mode == "squash":
        resize = f"resize({tuple(size)}, {method!r})"
    elif mode == "shortest" and size[0] == size[1]:
        resize = f"resize_small({size[0]}, {method!r})|central_crop({tuple(size)})"
    else:
        raise WeightsError(
            f"{CONFIG}: resize_mode {mode!r} to {tuple(size)}; squash, or shortest to a square, is understood"
        )
    return f"decode(3)|{resize}|normalize({tuple(source['mean'])}, {tuple(source['std'])})"

"""CLIP in a file without a config, under the names of OpenAI's code, which are open_clip's too.

open_clip's model_cfg is made from the shapes. Heads are of 64 numbers, as in all published sizes; the activation is
QuickGELU in OpenAI's own files, which are known by three numbers that they hold, and has to be given for others.
"""

import math
import re
from collections.abc import Collection
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.two_towers import TwoTowers
from vitvlm.nn.patches import Pair, as_pair
from vitvlm.pretrained import texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.families import Family, Inputs, Json, image_inputs, text_inputs
from vitvlm.pretrained.open_clip import operations
from vitvlm.pretrained.open_clip_models import clip_fields
from vitvlm.pretrained.open_clip_rows import OPENAI_NUMBERS, clip_rows

HEAD_WIDTH = 64
ACTIVATIONS = ("quick_gelu", "gelu")


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("two_towers", ...)`.

    Args:
      source: keywords: activation, head_width and image_size.

    Raises ConfigError for a field that neither the tensors nor the keywords tell.
    """
    shapes = tensors.shapes()
    width, patch = shapes["visual.conv1.weight"][0], shapes["visual.conv1.weight"][2:]
    text_width, head_width = shapes["ln_final.weight"][0], source.get("head_width", HEAD_WIDTH)
    if width % head_width or text_width % head_width:
        raise ConfigError(f"towers of width {width} and {text_width} have no heads of {head_width}: give head_width=")
    vision = {
        "width": width,
        "layers": _layers(shapes, "visual.transformer"),
        "head_width": head_width,
        "mlp_ratio": shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0] / width,
        "patch_size": list(patch),
        "image_size": list(_image_size(source, tensors)),
    }
    text = {
        "width": text_width,
        "layers": _layers(shapes, "transformer"),
        "heads": text_width // head_width,
        "mlp_ratio": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0] / text_width,
        "context_length": shapes["positional_embedding"][0],
        "vocab_size": shapes["token_embedding.weight"][0],
    }
    return clip_fields(
        {
            "embed_dim": shapes["text_projection"][1],
            "vision_cfg": vision,
            "text_cfg": text,
            "quick_gelu": _activation(source, tensors) == "quick_gelu",
            **({"init_logit_bias": -10.0} if "logit_bias" in shapes else {}),
        },
        tensors,
    )


def _layers(names: Collection[str], theirs: str) -> int:
    found = [re.match(rf"{theirs}\.resblocks\.(\d+)\.", name) for name in names]
    return 1 + max(int(each[1]) for each in found if each)


def _activation(source: Json, tensors: Tensors) -> str:
    given = source.get("activation", "quick_gelu" if is_openais(tensors) else None)
    if given not in ACTIVATIONS:
        raise ConfigError(
            f"the file does not say its activation ({given!r}): give activation='quick_gelu' of OpenAI's weights, "
            f"or 'gelu' of most of open_clip's"
        )
    return given


def is_openais(tensors: Tensors) -> bool:
    """Tells whether the tensors come from one of OpenAI's own files."""
    return all(name in tensors for name in OPENAI_NUMBERS)


def _image_size(source: Json, tensors: Tensors) -> Pair:
    if "image_size" in source:
        return as_pair(source["image_size"])
    shapes = tensors.shapes()
    patches = shapes["visual.positional_embedding"][0] - 1
    if (side := math.isqrt(patches)) ** 2 != patches:
        raise ConfigError(f"{patches} positions are no square grid: give image_size=(height, width)")
    height, width = shapes["visual.conv1.weight"][2:]
    return side * height, side * width


def inputs(source: Json, tensors: Tensors) -> Inputs:
    """Images and texts, as the shapes say."""
    shapes = tensors.shapes()
    return image_inputs(_image_size(source, tensors), shapes["visual.conv1.weight"][1]) + text_inputs(
        shapes["positional_embedding"][0]
    )


def preprocessing(source: Json, tensors: Tensors) -> str | None:
    """Returns the preprocessing of OpenAI's code for one of OpenAI's own files, and None for others."""
    return operations({}, list(_image_size(source, tensors))) if is_openais(tensors) else None


def tokenizer(tensors: Tensors) -> texts.Rules | None:
    """CLIP's, of its vocabulary; another is not known."""
    vocab_size, length = tensors.shapes()["token_embedding.weight"][0], tensors.shapes()["positional_embedding"][0]
    return {"tokenizer": "clip", "length": length} if vocab_size == texts.CLIP_VOCABULARY else None


FAMILY = Family("two_towers", TwoTowers, fields, clip_rows)

"""SigLIP 2 weights of Hugging Face `transformers` for images of every shape (NaFlex): Siglip2Model, and its towers
alone, Siglip2VisionModel, Siglip2ForImageClassification and Siglip2TextModel.

Those of a fixed resolution are SigLIP's: see `siglip`.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.models.naflex import NaFlex
from vitvlm.models.text import TextTransformer
from vitvlm.models.two_towers import TwoTowers
from vitvlm.nn.patches import Pair, Patches, as_pair
from vitvlm.pretrained import siglip, texts
from vitvlm.pretrained.clip import BLOCK_FIELDS, block_config, block_fields, described_texts
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Inputs, Json
from vitvlm.pretrained.tables import Row, Transform, row, under
from vitvlm.pretrained.transforms import dense, same, scalar
from vitvlm.pretrained.vit import is_square, labels, num_labels, without


def patch_inputs(source: Json) -> Inputs:
    """One image of one patch."""
    patch, channels = source["patch_size"], source["num_channels"]
    shapes = ((1, 1, patch * patch * channels), jnp.float32), ((1, 1), jnp.bool_), ((1, 2), jnp.int32)
    return (Patches(*(jax.ShapeDtypeStruct(*each) for each in shapes)),)


def two_towers_inputs(source: Json) -> Inputs:
    return patch_inputs(source["vision_config"]) + described_texts(source["text_config"])


def model_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("two_towers", ...)` from the config.json of a Siglip2Model."""
    image = vision_fields(source["vision_config"])
    if image["pool"] != "map":
        raise ConfigError("config.json: vision_use_head false: a Siglip2Model without its pooling makes no embeddings")
    return {
        "image": {"name": "naflex", **image},
        "text": {"name": "text", **siglip.text_fields(source["text_config"])},
        "embed_dim": image["width"],
        "image_projection": "none",
        "text_projection": "none",
        "scale_init": 10.0,
        "bias_init": -10.0,
        "scan": False,
    }


def vision_fields(source: Json) -> dict[str, Any]:
    """Fields of SigLIP 2's image tower. Raises ConfigError for a table of positions that is not square."""
    side = math.isqrt(source["num_patches"])
    if side * side != source["num_patches"]:
        raise ConfigError(f"config.json: num_patches {source['num_patches']}: the table of positions is a square")
    pool = "map" if source["vision_use_head"] else "gap"
    return block_fields(source) | {"patch_size": source["patch_size"], "position_grid": (side, side), "pool": pool}


def classifier_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("naflex", ...)` from the config.json of a Siglip2ForImageClassification."""
    head = {"num_classes": num_labels(source), "head_input": "mean", "scan": False}
    return vision_fields(source["vision_config"]) | head


def model_config(model: TwoTowers, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a Siglip2Model."""
    return {
        "architectures": ["Siglip2Model"],
        "model_type": "siglip2",
        "vision_config": vision_config(model.image, params["image"]),
        "text_config": text_config(model.text),
    }


def vision_model_config(model: NaFlex, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a Siglip2VisionModel, or of a Siglip2ForImageClassification."""
    if not model.num_classes:
        return {"architectures": ["Siglip2VisionModel"]} | vision_config(model, params)
    return {
        "architectures": ["Siglip2ForImageClassification"],
        "model_type": "siglip2",
        "vision_config": vision_config(model, params),
        **labels(model.num_classes),
    }


def vision_config(model: NaFlex, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `vision_fields`."""
    h, w = model.position_grid
    return (
        block_config(model)
        | siglip.tanh_name(model)
        | {
            "model_type": "siglip2_vision_model",
            "patch_size": as_pair(model.patch_size)[0],
            "num_patches": h * w,
            "num_channels": params["patches"]["kernel"].shape[2],
            "vision_use_head": model.pool == "map",
        }
    )


def text_config(model: TextTransformer) -> dict[str, Any]:
    """SigLIP's, under another name."""
    return siglip.text_config(model) | {"model_type": "siglip2_text_model"}


def model_rows(model: TwoTowers, names: Collection[str]) -> Iterator[Row]:
    """Rows of a Siglip2Model."""
    yield row("logit_scale", "log_scale", scalar)
    yield row("logit_bias", "bias", scalar)
    yield from under("vision_model.", "image/", vision_rows(model.image))
    yield from under("text_model.", "text/", siglip.headed_text_rows(model.text))


def vision_model_rows(model: NaFlex, names: Collection[str]) -> Iterator[Row]:
    """Siglip2VisionModel and Siglip2ForImageClassification."""
    yield from under("vision_model." if model.num_classes else "", "", vision_rows(model))
    if model.num_classes:
        yield from dense("classifier", "head")


def vision_rows(model: NaFlex) -> Iterator[Row]:
    """Rows of SigLIP 2's image tower: the patch embedding is a linear layer, and positions are an embedding."""
    h, w = model.position_grid
    yield row("embeddings.patch_embedding.weight", "patches/kernel", linear_patches(as_pair(model.patch_size)))
    yield row("embeddings.patch_embedding.bias", "patches/bias", same)
    table = Transform(read=lambda x: (x.reshape(h, w, -1),), write=lambda x: (x.reshape(h * w, -1),))
    yield row("embeddings.position_embedding.weight", "positions/grid", table)
    yield from siglip.tower_rows(model)


def linear_patches(patch: Pair) -> Transform:
    """Transform from [D, P*P*C], row, column and channel of a patch in order, to our [P, P, C, D]."""
    return Transform(
        read=lambda x: (np.ascontiguousarray(x.T).reshape(*patch, -1, x.shape[0]),),
        write=lambda kernel: (kernel.reshape(-1, kernel.shape[-1]).T,),
    )


IMAGE_FIELDS = {
    **BLOCK_FIELDS,
    "patch_size": lambda model: is_square(model.patch_size),
    "position_grid": lambda model: is_square(model.position_grid),
}
HEADED_FIELDS = {
    **IMAGE_FIELDS,
    **anything("num_classes"),
    "pool": ("map", "gap"),
    "head_input": lambda model: siglip.reads_mean(model) if model.num_classes else model.head_input == "pooled",
}
FIELDS = siglip.FIELDS | {
    "image": Expressible("SigLIP 2", NaFlex, IMAGE_FIELDS),
    "text": Expressible("SigLIP 2", TextTransformer, siglip.TEXT_FIELDS),
}

VISION = Family(
    "naflex",
    NaFlex,
    fields=lambda source, names: vision_fields(source) | {"scan": False},
    rows=vision_model_rows,
    config=vision_model_config,
    model_type="siglip2_vision_model",
    inputs=patch_inputs,
    rename=without("vision_model."),
    expressible=Expressible("SigLIP 2", NaFlex, HEADED_FIELDS),
)
FAMILIES = {
    "Siglip2Model": Family(
        "two_towers",
        TwoTowers,
        model_fields,
        model_rows,
        model_config,
        "siglip2",
        two_towers_inputs,
        texts=texts.siglip,
        expressible=Expressible("SigLIP 2", TwoTowers, FIELDS),
    ),
    "Siglip2VisionModel": VISION,
    "Siglip2ForImageClassification": dataclasses.replace(
        VISION,
        fields=classifier_fields,
        model_type="siglip2",
        inputs=lambda source: patch_inputs(source["vision_config"]),
        rename=without(""),
    ),
    # Written as SigLIP's, which it is.
    "Siglip2TextModel": dataclasses.replace(siglip.TEXT, model_type="siglip2_text_model"),
}

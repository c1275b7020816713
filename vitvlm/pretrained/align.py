"""ALIGN weights of Hugging Face `transformers`: AlignModel, and its towers alone, AlignVisionModel, an EfficientNet
without its last convolution, and AlignTextModel, which is a BERT and is written as one."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.models.bert import Bert
from vitvlm.models.efficientnet import EfficientNet
from vitvlm.models.two_towers import TwoTowers
from vitvlm.pretrained import bert, efficientnet, texts
from vitvlm.pretrained.clip import two_towers_inputs
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, temperature
from vitvlm.pretrained.vit import without


def align_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("two_towers", ...)` from the config.json of an AlignModel.

    The temperature that logits are divided by is learned there, the logarithm of its inverse here.
    """
    text = bert.bert_fields(source["text_config"], names, "text_model.")
    return {
        "image": {"name": "efficientnet", **vision_fields(source["vision_config"], names)},
        "text": {"name": "bert", **text, "pool": "first"},
        "embed_dim": source["projection_dim"],
        "image_projection": "none",
        "text_projection": "affine",
        "scale_init": 1 / source["temperature_init_value"],
        "scan": False,
    }


def vision_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of ALIGN's image tower."""
    return efficientnet.encoder_fields(source, names) | {"top": False}


def align_config(model: TwoTowers, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of an AlignModel."""
    return {
        "architectures": ["AlignModel"],
        "model_type": "align",
        "vision_config": {"model_type": "align_vision_model"} | vision_config(model.image, params["image"]),
        "text_config": {"model_type": "align_text_model"} | bert.bert_config(model.text),
        "projection_dim": model.embed_dim,
        "temperature_init_value": round(1 / model.scale_init, 10),  # the inverse of itself but for the last digit
    }


def vision_config(model: EfficientNet, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `vision_fields`."""
    swish = {"hidden_act": "swish"} if model.activation == "silu" else {}  # the name that its configs use
    return efficientnet.encoder_config(model, params) | swish


def align_rows(model: TwoTowers, names: Collection[str]) -> Iterator[Row]:
    """Rows of an AlignModel."""
    yield row("temperature", "log_scale", temperature)
    yield from dense("text_projection", "project_text/out")
    yield from under("vision_model.", "image/", efficientnet.encoder_rows(model.image))
    yield from under("", "text/", bert.bert_rows(model.text, "text_model."))


IMAGE = Expressible("ALIGN", EfficientNet, efficientnet.ENCODER_FIELDS | {"top": (False,)})
TEXT_FIELDS = bert.ENCODER_FIELDS | {"pool": ("first",), "pooler": lambda model: model.has_pooler}
FIELDS = {
    "image": IMAGE,
    "text": Expressible("ALIGN", Bert, TEXT_FIELDS),
    **anything("embed_dim", "scale_init"),
    "image_projection": ("none",),
    "text_projection": ("affine",),
}
FAMILIES = {
    "AlignModel": Family(
        "two_towers",
        TwoTowers,
        align_fields,
        align_rows,
        align_config,
        "align",
        two_towers_inputs,
        texts=texts.align,
        expressible=Expressible("ALIGN", TwoTowers, FIELDS),
    ),
    "AlignVisionModel": Family(
        "efficientnet",
        EfficientNet,
        fields=vision_fields,
        rows=lambda model, names: efficientnet.encoder_rows(model),
        config=lambda model, params: (
            {"architectures": ["AlignVisionModel"], "model_type": "align_vision_model"} | vision_config(model, params)
        ),
        model_type="align_vision_model",
        rename=without("vision_model."),
        expressible=IMAGE,
    ),
    "AlignTextModel": dataclasses.replace(
        bert.FAMILIES["BertModel"], model_type="align_text_model", rename=without("text_model.")
    ),
}

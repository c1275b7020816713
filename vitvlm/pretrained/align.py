"""ALIGN weights of Hugging Face `transformers`: AlignModel, and its towers alone, AlignVisionModel, an EfficientNet
without its last convolution, and AlignTextModel, which is a BERT and is written as one."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.models.bert import Bert
from vitvlm.models.efficientnet import EfficientNet
from vitvlm.models.two_towers import TwoTowers
from vitvlm.pretrained import bert, efficientnet, texts
from vitvlm.pretrained.clip import tower, two_towers_inputs
from vitvlm.pretrained.families import Family, Inputs, Json, check_expressible, image_inputs
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, temperature

# What a config.json that does not say means: the defaults of AlignConfig and AlignVisionConfig (EfficientNet-B7).
DEFAULTS = {"projection_dim": 640, "temperature_init_value": 1.0}
VISION_DEFAULTS = {
    "num_channels": 3,
    "image_size": 600,
    "width_coefficient": 2.0,
    "depth_coefficient": 3.1,
    "depth_divisor": 8,
    "kernel_sizes": (3, 3, 5, 3, 5, 5, 3),
    "out_channels": (16, 24, 40, 80, 112, 192, 320),
    "depthwise_padding": (),
    "strides": (1, 2, 2, 2, 1, 2, 1),
    "num_block_repeats": (1, 2, 2, 3, 3, 4, 1),
    "expand_ratios": (1, 6, 6, 6, 6, 6, 6),
    "squeeze_expansion_ratio": 0.25,
    "hidden_act": "swish",
    "pooling_type": "mean",
    "batch_norm_eps": 1e-3,
    "batch_norm_momentum": 0.99,
    "drop_connect_rate": 0.2,
    "dropout_rate": 0.0,  # of a head, which there is none of
}


def align_inputs(source: Json) -> Inputs:
    return two_towers_inputs(tower(source, "vision", VISION_DEFAULTS), tower(source, "text", bert.DEFAULTS))


def align_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("two_towers", ...)` from the config.json of an AlignModel.

    The temperature that logits are divided by is learned there, the logarithm of its inverse here.
    """
    source = DEFAULTS | source
    text = bert.bert_fields(tower(source, "text", bert.DEFAULTS), names, "text_model.")
    return {
        "image": {"name": "efficientnet", **vision_fields(tower(source, "vision", VISION_DEFAULTS), names)},
        "text": {"name": "bert", **text, "pool": "first"},
        "embed_dim": source["projection_dim"],
        "image_projection": "none",
        "text_projection": "affine",
        "scale_init": 1 / source["temperature_init_value"],
        "scan": False,
    }


def vision_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Of ALIGN's image tower."""
    return efficientnet.encoder_fields(source, names) | {"top": False}


def align_config(model: TwoTowers, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of an AlignModel. Raises ConfigError for what it cannot express."""
    check_expressible(
        {
            "image": isinstance(model.image, EfficientNet),
            "text": isinstance(model.text, Bert),
            "image_projection": model.image_projection == "none",
            "text_projection": model.text_projection == "affine",
            "bias_init": model.bias_init is None,
        },
        model,
        "ALIGN",
    )
    check_expressible({"pool": model.text.pool == "first", "pooler": model.text.has_pooler}, model.text, "ALIGN")
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
    check_expressible(
        {"top": not model.top, "num_classes": not model.num_classes, "dropout": not model.dropout}, model, "ALIGN"
    )
    swish = {"hidden_act": "swish"} if model.activation == "silu" else {}  # the name that its configs use
    return efficientnet.encoder_config(model, params) | swish


def align_rows(model: TwoTowers, names: Collection[str]) -> Iterator[Row]:
    """AlignModel."""
    yield row("temperature", "log_scale", temperature)
    yield from dense("text_projection", "project_text/out")
    yield from under("vision_model.", "image/", efficientnet.encoder_rows(model.image))
    yield from under("", "text/", bert.bert_rows(model.text, names, "text_model."))


FAMILIES = {
    "AlignModel": Family("two_towers", TwoTowers, align_fields, align_rows, align_config, align_inputs, texts.align),
    "AlignVisionModel": Family(
        "efficientnet",
        EfficientNet,
        fields=lambda source, names: vision_fields(VISION_DEFAULTS | source, names),
        rows=lambda model, names: efficientnet.encoder_rows(model),
        config=lambda model, params: (
            {"architectures": ["AlignVisionModel"], "model_type": "align_vision_model"} | vision_config(model, params)
        ),
        inputs=lambda source: image_inputs(*((VISION_DEFAULTS | source)[f] for f in ("image_size", "num_channels"))),
    ),
    "AlignTextModel": bert.FAMILIES["BertModel"],
}

"""Qwen2-VL weights of Hugging Face `transformers`: Qwen2VLForConditionalGeneration."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.models.connectors.projector import MLP
from vitvlm.models.decoder import Decoder
from vitvlm.models.qwen_vit import QwenViT
from vitvlm.models.vlm import VLM
from vitvlm.nn.patches import as_pair
from vitvlm.nn.rope import Rope, sections
from vitvlm.pretrained import llama, parts, rotary, texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Inputs, Json
from vitvlm.pretrained.tables import Row, Transform, row, under
from vitvlm.pretrained.transforms import dense, layer_norm, qkv, qkv_bias
from vitvlm.pretrained.vit import ACTIVATIONS, activation, their_activation

AXES = 3  # time, row and column
MOVE = parts.moved()
RENAME = parts.renamed(("model.visual.", "visual."), ("model.language_model.", "model."))


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vlm", ...)` from the config.json of a Qwen2VLForConditionalGeneration."""
    text = _text(source)
    found = llama.qwen2_fields({**text, **_plain_rope(text)}, tensors)
    axes = sections(*_parameters(text).get("mrope_section", (16, 24, 24)))
    vision = vision_fields(source["vision_config"])
    return {
        "image": {"name": "qwen_vit", **vision},
        "connector": {"name": "mlp", "hidden": vision["merge"] ** 2 * vision["width"]},
        "text": {"name": "decoder", **parts.without_how(found), "rope": {**found["rope"], "axes": axes}},
        "image_token": source["image_token_id"],
        "scan": False,
    }


def _text(source: Json) -> dict[str, Any]:
    """The text's config, with whether the head is tied, which the whole's says, or its own in older files."""
    text = source["text_config"]
    return {**text, "tie_word_embeddings": source["tie_word_embeddings"] or text.get("tie_word_embeddings", False)}


def _parameters(text: Json) -> dict[str, Any]:
    return dict(text.get("rope_scaling") or text.get("rope_parameters") or {})


def _plain_rope(text: Json) -> dict[str, Any]:
    """The rotary positions of one axis, in the newer form."""
    found = {name: value for name, value in _parameters(text).items() if name != "mrope_section"}
    kind = found.pop("type", None) or "default"
    found["rope_type"] = "default" if kind == "mrope" else found.get("rope_type", kind)
    return {"rope_scaling": None, "rope_parameters": found}


def config(model: VLM, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `fields`. Raises ConfigError for a connector whose first map changes the width."""
    text, merged = model.text, model.image.merge**2 * model.image.width
    if model.connector.hidden != merged:
        raise ConfigError(
            f"Qwen2-VL has no connector.hidden = {model.connector.hidden}: its merged tokens have {merged}"
        )
    found = llama.qwen_config(text.clone(rope=_one_axis(text.rope)), params["text"], "", "qwen2_vl_text")
    rope = {**found["rope_parameters"], "mrope_section": [text.rope.axes.count(axis) for axis in range(AXES)]}
    left_out = ("architectures", "head_dim", "rope_theta", "rope_scaling", "tie_word_embeddings")
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vision_config": vision_config(model.image) | {"hidden_size": text.width},
        "text_config": {name: value for name, value in found.items() if name not in left_out}
        | {"rope_parameters": rope},
        "image_token_id": model.image_token,
        "tie_word_embeddings": text.tied,
    }


def rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of a Qwen2VLForConditionalGeneration."""
    yield from under("visual.", "image/", vision_rows(model.image))
    for i, theirs in enumerate(("mlp.0", "mlp.2")):
        yield from dense(f"visual.merger.{theirs}", f"connector/layers_{i}")
    yield from parts.language_rows(model.text, names, MOVE, llama.QWEN2)


def inputs(source: Json) -> Inputs:
    vision = source["vision_config"]
    return parts.image_and_text(
        vision["patch_size"] * vision["spatial_merge_size"], vision.get("in_chans", vision["in_channels"])
    )


def vision_fields(source: Json) -> dict[str, Any]:
    """Fields of `models.build("qwen_vit", ...)` from a vision_config. Raises ConfigError for patches of other kinds."""
    patch, frames = source["patch_size"], source["temporal_patch_size"]
    if not isinstance(patch, int) or not isinstance(frames, int):
        raise ConfigError(f"config.json: patch_size {patch}, temporal_patch_size {frames}: whole numbers are read")
    rope = source.get("rope_parameters") or {}
    if rope.get("rope_type", "axial") != "axial":
        raise ConfigError(f"config.json: vision_config.rope_parameters.rope_type {rope['rope_type']!r}; only 'axial'")
    return {
        "width": source["embed_dim"],
        "depth": source["depth"],
        "heads": source["num_heads"],
        "mlp_width": int(source["embed_dim"] * source["mlp_ratio"]),
        "activation": activation(source),
        "channels": source.get("in_chans", source["in_channels"]),
        "patch_size": patch,
        "frames": frames,
        "merge": source["spatial_merge_size"],
        "rope_base": float(rope.get("rope_theta", 10_000.0)),
    }


def vision_config(model: QwenViT) -> dict[str, Any]:
    """The inverse of `vision_fields`."""
    return {
        "model_type": "qwen2_vl_vision",
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": model.mlp_width // model.width,
        "hidden_act": their_activation(model.activation),
        "in_channels": model.channels,
        "patch_size": as_pair(model.patch_size)[0],
        "temporal_patch_size": model.frames,
        "spatial_merge_size": model.merge,
        "rope_parameters": {"rope_type": "axial", "rope_theta": model.rope_base},
    }


def vision_rows(model: QwenViT) -> Iterator[Row]:
    """Rows of Qwen2-VL's image encoder, without its merger's linear maps, which are the connector."""
    yield row("patch_embed.proj.weight", "patches/kernel", _video_patches(model))
    for i in range(model.depth):
        yield from under(f"blocks.{i}.", f"blocks_{i}/", _block_rows())
    yield from layer_norm("merger.ln_q", "norm")


def _block_rows() -> Iterator[Row]:
    projections = ("query", "key", "value")
    yield from layer_norm("norm1", "attention_norm")
    yield row("attn.qkv.weight", tuple(f"attention/{name}/kernel" for name in projections), qkv)
    yield row("attn.qkv.bias", tuple(f"attention/{name}/bias" for name in projections), qkv_bias)
    yield from dense("attn.proj", "attention/out")
    yield from layer_norm("norm2", "mlp_norm")
    yield from dense("mlp.fc1", "mlp/up")
    yield from dense("mlp.fc2", "mlp/down")


def _video_patches(model: QwenViT) -> Transform:
    """Transform from a convolution of frames [D, C, T, P, P] to our [P, P, T * C, D]."""
    (p, q), T = as_pair(model.patch_size), model.frames

    def read(x: np.ndarray) -> tuple[np.ndarray]:
        return (x.transpose(3, 4, 2, 1, 0).reshape(p, q, -1, len(x)),)

    def write(kernel: np.ndarray) -> tuple[np.ndarray]:
        return (kernel.reshape(p, q, T, -1, kernel.shape[-1]).transpose(4, 3, 2, 0, 1),)

    return Transform(read, write)


def _one_axis(rope: Rope) -> Rope:
    return dataclasses.replace(rope, axes=None)


def _is_said(model: Decoder) -> bool:
    """Tells whether the rotary positions are those of three axes, one section after the other."""
    rope = model.rope
    if rope.axes is None or list(rope.axes) != sorted(rope.axes) or set(rope.axes) - set(range(AXES)):
        return False
    return not rope.restart and rope.channels is None and rotary.is_said(_one_axis(rope), model.length)


VISION_FIELDS = {
    **anything("width", "depth", "heads", "channels", "frames", "merge", "rope_base"),
    "mlp_width": lambda model: model.mlp_width % model.width == 0,
    "activation": tuple(ACTIVATIONS.values()),
    "patch_size": lambda model: len(set(as_pair(model.patch_size))) == 1,
}
TEXT_FIELDS = llama.QWEN2.expressible.fields | {
    "rope": _is_said,
    "head_dim": lambda model: llama.head_dim(model) * model.heads == model.width,
}
FAMILIES = {
    "Qwen2VLForConditionalGeneration": Family(
        "vlm",
        VLM,
        fields,
        rows,
        config,
        "qwen2_vl",
        inputs,
        rename=RENAME,
        top="model",
        texts=texts.fast,
        expressible=Expressible(
            "Qwen2-VL",
            VLM,
            {
                "image": Expressible("Qwen2-VL", QwenViT, VISION_FIELDS),
                "connector": Expressible(
                    "Qwen2-VL",
                    MLP,
                    {**anything("width"), "hidden": lambda model: model.hidden is not None},
                ),
                "text": Expressible("Qwen2-VL", Decoder, TEXT_FIELDS),
                "image_token": lambda model: model.image_token is not None,
            },
        ),
    )
}

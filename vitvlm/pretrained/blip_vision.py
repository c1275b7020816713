"""The image encoder of BLIP, BLIP-2 and InstructBLIP in `transformers`: a ViT with one map to query, key and value."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from vitvlm.core.config import ConfigError
from vitvlm.models.vit import ViT
from vitvlm.nn.patches import as_pair
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Json
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import conv, dense, layer_norm, position_rows, qkv, qkv_bias, same, token
from vitvlm.pretrained.vit import ACTIVATIONS, activation, is_square, their_activation

CHANNELS = 3  # which no config says


def image_inputs(source: Json) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of images that the encoder takes."""
    return (jax.ShapeDtypeStruct((1, *as_pair(source["image_size"]), CHANNELS), jnp.float32),)


def fields(source: Json) -> dict[str, Any]:
    """Fields of `models.build("vit", ...)` from a vision_config.

    Its final norm is that of all tokens. That of a pooled vector, which passes the norm twice there, has no use.
    """
    patch, size = source["patch_size"], source["image_size"]
    if as_pair(patch)[0] != as_pair(patch)[1] or as_pair(size)[0] != as_pair(size)[1]:
        raise ConfigError(f"vision_config: patch_size {patch}, image_size {size}: `transformers` takes squares only")
    return {
        "width": source["hidden_size"],
        "depth": source["num_hidden_layers"],
        "heads": source["num_attention_heads"],
        "mlp_width": source["intermediate_size"],
        "patch_size": as_pair(patch)[0],
        "image_size": as_pair(size)[0],
        "crop": bool(as_pair(size)[0] % as_pair(patch)[0]),
        "qkv_bias": source.get("qkv_bias", True),
        "activation": activation(source),
        "norm_eps": source["layer_norm_eps"],
        "attention_dropout": float(source["attention_dropout"]),
    }


def config(model: ViT) -> dict[str, Any]:
    """The inverse of `fields`, for a family whose encoder always has these biases, or says that it has."""
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp_width,
        "patch_size": as_pair(model.patch_size)[0],
        "image_size": as_pair(model.image_size)[0],
        "qkv_bias": model.qkv_bias,
        "hidden_act": their_activation(model.activation),
        "layer_norm_eps": model.norm_eps,
        "attention_dropout": model.attention_dropout,
    }


def rows(model: ViT) -> Iterator[Row]:
    """Rows of the encoder, without its prefix."""
    yield row("embeddings.class_embedding", "cls", token)
    yield from position_rows("embeddings.position_embedding", "learned", model.table_grid, model.width)
    yield row("embeddings.patch_embedding.weight", "patches/kernel", conv)
    yield row("embeddings.patch_embedding.bias", "patches/bias", same)
    for i in range(model.depth):
        yield from under(f"encoder.layers.{i}.", f"blocks_{i}/", _block_rows(model.qkv_bias))
    yield from layer_norm("post_layernorm", "norm")


def _block_rows(bias: bool) -> Iterator[Row]:
    yield from layer_norm("layer_norm1", "attention_norm")
    names = ("query", "key", "value")
    yield row("self_attn.qkv.weight", tuple(f"attention/{name}/kernel" for name in names), qkv)
    if bias:
        yield row("self_attn.qkv.bias", tuple(f"attention/{name}/bias" for name in names), qkv_bias)
    yield from dense("self_attn.projection", "attention/out")
    yield from layer_norm("layer_norm2", "mlp_norm")
    yield from dense("mlp.fc1", "mlp/up")
    yield from dense("mlp.fc2", "mlp/down")


def expressible(format: str) -> Expressible:
    """Fields that a vision_config can say."""
    return Expressible(
        format,
        ViT,
        {
            **anything("width", "depth", "heads", "mlp_width", "norm_eps", "attention_dropout", "qkv_bias"),
            "activation": tuple(ACTIVATIONS.values()),
            "image_size": lambda model: is_square(model.image_size),
            "patch_size": lambda model: is_square(model.patch_size),
            # They leave out pixels that fill no whole patch; where there are none, it makes no difference.
            "crop": lambda model: model.crop or not as_pair(model.image_size)[0] % as_pair(model.patch_size)[0],
            "cls_token": lambda model: model.has_cls,
        },
    )

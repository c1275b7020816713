"""The ViTs, text towers and two towers of big_vision and vision_transformer, from the names and shapes of their arrays.

What does not follow from these is what that code base always does: GELU by tanh, eps 1e-6.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.text import TextTransformer
from vitvlm.models.two_towers import TwoTowers
from vitvlm.models.vit import ViT
from vitvlm.nn.patches import Pair, as_pair
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.families import Family
from vitvlm.pretrained.tables import Row, Transform, row, under
from vitvlm.pretrained.transforms import position_rows, same, scalar, token, tokens

BIG_VISION_POSITIONS, AUGREG_POSITIONS = "pos_embedding", "Transformer/posembed_input/pos_embedding"
ALWAYS = {"activation": "gelu_tanh", "norm_eps": 1e-6, "scan": False}


def vit_fields(source: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vit", ...)` from the names and shapes of the arrays."""
    shapes = tensors.shapes()
    height, width, _, features = shapes["embedding/kernel"]
    block = _block_names(tensors)
    first = "Transformer/encoderblock_0"
    return {
        "width": features,
        "depth": _depth(shapes),
        "heads": shapes[f"{first}/{block['attention']}/query/kernel"][1],
        "mlp_width": shapes[f"{first}/{block['mlp']}/Dense_0/kernel"][1],
        "patch_size": (height, width),
        "image_size": image_size(source, tensors),
        "num_classes": shapes["head/bias"][0] if "head/bias" in shapes else 0,
        "pool": "map" if "MAPHead_0/probe" in shapes else "cls" if "cls" in shapes else "gap",
        "positions": "learned" if {BIG_VISION_POSITIONS, AUGREG_POSITIONS} & set(shapes) else "sincos",
        "special_positions": BIG_VISION_POSITIONS not in shapes,  # big_vision adds none to CLS
        "representation_size": shapes["pre_logits/bias"][0] if "pre_logits/bias" in shapes else None,
        **ALWAYS,
    }


def image_size(source: Mapping[str, Any], tensors: Tensors) -> Pair:
    """Returns `image_size` of the source, or else the size that a square grid of positions covers."""
    if "image_size" in source:
        return as_pair(source["image_size"])
    shapes = tensors.shapes()
    height, width = shapes["embedding/kernel"][:2]
    name = next((name for name in (BIG_VISION_POSITIONS, AUGREG_POSITIONS) if name in shapes), None)
    if name is None:
        raise ConfigError("the positions are not in the file: give image_size=")
    patches = shapes[name][1] - (name == AUGREG_POSITIONS and "cls" in shapes)
    side = math.isqrt(patches)
    if side * side != patches:
        raise ConfigError(f"{patches} positions are no square grid: give image_size=(height, width)")
    return side * height, side * width


def _depth(names: Collection[str]) -> int:
    return 1 + max(int(name.split("/")[1].rpartition("_")[2]) for name in names if "/encoderblock_" in name)


def _block_names(names: Collection[str]) -> dict[str, str]:
    """Names of a block's parts: big_vision numbers each kind of module apart, vision_transformer all together."""
    together = any("/MultiHeadDotProductAttention_1/" in name for name in names)
    if together:
        return {"attention": "MultiHeadDotProductAttention_1", "mlp": "MlpBlock_3", "mlp_norm": "LayerNorm_2"}
    return {"attention": "MultiHeadDotProductAttention_0", "mlp": "MlpBlock_0", "mlp_norm": "LayerNorm_1"}


def vit_rows(model: ViT, names: Collection[str]) -> Iterator[Row]:
    """A ViT of either code base."""
    block = _block_names(names)
    yield from _dense("embedding", "patches", same)
    if model.has_cls:
        yield row("cls", "cls", token)
    if model.positions == "learned":
        theirs = AUGREG_POSITIONS if AUGREG_POSITIONS in names else BIG_VISION_POSITIONS
        yield from position_rows(theirs, "learned", model.table_grid, model.width, model.placed)
    yield from _encoder_rows("Transformer", model.depth, model.heads, block)
    if model.pool == "map":
        yield row("MAPHead_0/probe", "pool/probe", tokens)
        yield from _attention("MAPHead_0/MultiHeadDotProductAttention_0", "pool/attention", model.heads)
        yield from _norm("MAPHead_0/LayerNorm_0", "pool/mlp_norm")
        yield from _mlp("MAPHead_0/MlpBlock_0", "pool/mlp")
    if model.representation_size:
        yield from _dense("pre_logits", "representation", same)
    if model.num_classes:
        yield from _dense("head", "head", same)


def _encoder_rows(theirs: str, depth: int, heads: int, block: Mapping[str, str]) -> Iterator[Row]:
    for i in range(depth):
        their_block, our_block = f"{theirs}/encoderblock_{i}", f"blocks_{i}"
        yield from _norm(f"{their_block}/LayerNorm_0", f"{our_block}/attention_norm")
        yield from _attention(f"{their_block}/{block['attention']}", f"{our_block}/attention", heads)
        yield from _norm(f"{their_block}/{block['mlp_norm']}", f"{our_block}/mlp_norm")
        yield from _mlp(f"{their_block}/{block['mlp']}", f"{our_block}/mlp")
    yield from _norm(f"{theirs}/encoder_norm", "norm")


def _dense(theirs: str, ours: str, kernel: Transform, bias: Transform = same) -> Iterator[Row]:
    yield row(f"{theirs}/kernel", f"{ours}/kernel", kernel)
    yield row(f"{theirs}/bias", f"{ours}/bias", bias)


def _norm(theirs: str, ours: str) -> Iterator[Row]:
    yield row(f"{theirs}/scale", f"{ours}/scale", same)
    yield row(f"{theirs}/bias", f"{ours}/bias", same)


def _mlp(theirs: str, ours: str) -> Iterator[Row]:
    yield from _dense(f"{theirs}/Dense_0", f"{ours}/up", same)
    yield from _dense(f"{theirs}/Dense_1", f"{ours}/down", same)


def _attention(theirs: str, ours: str, heads: int) -> Iterator[Row]:
    """Rows of an attention layer, whose kernels in big_vision keep the heads apart: [D, K, d] in, [K, d, D] out."""
    split = Transform(read=lambda x: (x.reshape(len(x), -1),), write=lambda x: (x.reshape(len(x), heads, -1),))
    split_bias = Transform(read=lambda x: (x.reshape(-1),), write=lambda x: (x.reshape(heads, -1),))
    joined = Transform(
        read=lambda x: (x.reshape(-1, x.shape[-1]),), write=lambda x: (x.reshape(heads, -1, x.shape[-1]),)
    )
    for name in ("query", "key", "value"):
        yield from _dense(f"{theirs}/{name}", f"{ours}/{name}", split, split_bias)
    yield from _dense(f"{theirs}/out", f"{ours}/out", joined)


def text_fields(source: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Fields for `models.build("text", ...)`: the text towers of SigLIP and LiT, which pool the last token."""
    shapes = tensors.shapes()
    vocab_size, width = shapes["Embed_0/embedding"]
    first = "Encoder_0/encoderblock_0"
    return {
        "width": width,
        "depth": _depth(shapes),
        "heads": shapes[f"{first}/MultiHeadDotProductAttention_0/query/kernel"][1],
        "mlp_width": shapes[f"{first}/MlpBlock_0/Dense_0/kernel"][1],
        "vocab_size": vocab_size,
        "length": shapes[BIG_VISION_POSITIONS][1],
        "causal": False,
        "pool": "last",
        "projection": shapes["head/bias"][0] if "head/bias" in shapes else None,
        **ALWAYS,
    }


def text_rows(model: TextTransformer, names: Collection[str]) -> Iterator[Row]:
    yield row("Embed_0/embedding", "embed/embedding", same)
    yield row(BIG_VISION_POSITIONS, "positions", tokens)
    yield from _encoder_rows("Encoder_0", model.depth, model.heads, _block_names(names))
    if model.projection:
        yield from _dense("head", "projection", same)


def towers_fields(source: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Fields for `models.build("two_towers", ...)`: the subtrees img and txt, the scale t and SigLIP's bias b."""
    image, text = vit_fields(source, tensors.under("img/")), text_fields(source, tensors.under("txt/"))
    head = image.pop("num_classes")  # the last layer of the image tower is its projection
    return {
        "image": {"name": "vit", **image},
        "text": {"name": "text", **text},
        "embed_dim": text["projection"] or text["width"],
        "image_projection": "affine" if head else "none",
        "text_projection": "none",
        "scale_init": 10.0,
        "bias_init": -10.0 if "b" in tensors else None,
        "scan": False,
    }


def towers_rows(model: TwoTowers, names: Collection[str]) -> Iterator[Row]:
    inner = {prefix: [n.removeprefix(prefix) for n in names if n.startswith(prefix)] for prefix in ("img/", "txt/")}
    yield row("t", "log_scale", scalar)
    if model.bias_init is not None:
        yield row("b", "bias", scalar)
    if model.image_projection == "affine":
        yield from _dense("img/head", "project_image/out", same)
    yield from under("img/", "image/", vit_rows(model.image, inner["img/"]))
    yield from under("txt/", "text/", text_rows(model.text, inner["txt/"]))


VIT = Family("vit", ViT, vit_fields, vit_rows)
TEXT = Family("text", TextTransformer, text_fields, text_rows)
TOWERS = Family("two_towers", TwoTowers, towers_fields, towers_rows)

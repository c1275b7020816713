"""MiniGPT-4's weights by its authors' names (Zhu et al. 2024), in one file: EVA's ViT-g, BLIP-2's Q-Former without its
text side, the projection, and a LLaMA.

The file that they publish has what trains alone, the projection; the others are put beside it.
"""

import math
import re
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitvlm.models.vlm import VLM
from vitvlm.pretrained import llama
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.families import Family, Inputs, Json, text_inputs
from vitvlm.pretrained.tables import Arrays, Row, TableError, Transform, row, under
from vitvlm.pretrained.transforms import conv, dense, layer_norm, position_rows, qkv, same, token, tokens

ASKED = ("image_heads", "query_heads", "text_heads", "text_norm_eps", "length")
LANGUAGE = "llama_model."
IMAGE_TOKEN = -1  # LLaMA has no token of images; no text has this id, so where a call gives it, an image's tokens stand


def _without_keys() -> Transform:
    """Biases of queries and values; ours of keys besides, 0, which no softmax sees."""

    def read(query: np.ndarray, value: np.ndarray) -> Arrays:
        return query, np.zeros_like(query), value

    return Transform(read, write=lambda query, key, value: (query, value))


def _depth(tensors: Tensors, before: str) -> int:
    """Counts the blocks whose names begin so. Raises TableError for none."""
    found = {int(place[1]) for name in tensors if (place := re.match(rf"{re.escape(before)}(\d+)\.", name))}
    if not found:
        raise TableError(f"the checkpoint has no tensor {before}0.…")
    return max(found) + 1


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vlm", ...)` by the shapes, and by keywords of ASKED what these do not say.

    The norm behind the image encoder has the epsilon of its others, as in `transformers`; the authors' has 1e-5.
    """
    shapes = tensors.shapes()
    layers = "Qformer.bert.encoder.layer."
    blocks = f"{LANGUAGE}model.layers."
    width, _, patch, _ = shapes["visual_encoder.patch_embed.proj.weight"]
    side = math.isqrt(shapes["visual_encoder.pos_embed"][1] - 1)
    depth = _depth(tensors, layers)
    looking = [i for i in range(depth) if f"{layers}{i}.crossattention.output.dense.weight" in tensors]
    _, queries, query_width = shapes["query_tokens"]
    vocab_size, text_width = shapes[f"{LANGUAGE}model.embed_tokens.weight"]
    heads = source.get("text_heads", 32)
    return {
        "image": {
            "name": "vit",
            "width": width,
            "depth": _depth(tensors, "visual_encoder.blocks."),
            "heads": source.get("image_heads", 16),
            "mlp_width": shapes["visual_encoder.blocks.0.mlp.fc1.weight"][0],
            "patch_size": patch,
            "image_size": side * patch,
        },
        "connector": {
            "name": "qformer",
            "queries": queries,
            "query_width": query_width,
            "depth": depth,
            "heads": source.get("query_heads", 12),
            "mlp_width": shapes[f"{layers}0.intermediate_query.dense.weight"][0],
            "cross_every": looking[1] - looking[0] if len(looking) > 1 else depth,
        },
        "text": {
            "name": "decoder",
            "width": text_width,
            "depth": _depth(tensors, blocks),
            "heads": heads,
            "kv_heads": heads * shapes[f"{blocks}0.self_attn.k_proj.weight"][0] // text_width,
            "mlp_width": shapes[f"{blocks}0.mlp.gate_proj.weight"][0],
            "vocab_size": vocab_size,
            "length": source.get("length", 2048),
            "norm_eps": source.get("text_norm_eps", 1e-6),
        },
        "image_token": IMAGE_TOKEN,
        "keep_prefix": True,
        "scan": False,
    }


def rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of the whole model."""
    yield row("query_tokens", "connector/qformer/query_tokens", tokens)
    yield from under("visual_encoder.", "image/", _image_rows(model))
    yield from layer_norm("ln_vision", "image/norm")
    yield from under("Qformer.bert.", "connector/qformer/", _qformer_rows(model))
    yield from dense("llama_proj", "connector/projection")
    yield from under(LANGUAGE, "text/", llama.LLAMA.rows(model.text, {name.removeprefix(LANGUAGE) for name in names}))


def _image_rows(model: VLM) -> Iterator[Row]:
    image = model.image
    yield row("cls_token", "cls", token)
    yield from position_rows("pos_embed", "learned", image.table_grid, image.width)
    yield row("patch_embed.proj.weight", "patches/kernel", conv)
    yield row("patch_embed.proj.bias", "patches/bias", same)
    for i in range(image.depth):
        yield from under(f"blocks.{i}.", f"blocks_{i}/", _image_block_rows())


def _image_block_rows() -> Iterator[Row]:
    names = ("query", "key", "value")
    yield from layer_norm("norm1", "attention_norm")
    yield row("attn.qkv.weight", tuple(f"attention/{name}/kernel" for name in names), qkv)
    biases = tuple(f"attention/{name}/bias" for name in names)
    yield row(("attn.q_bias", "attn.v_bias"), biases, _without_keys())
    yield from dense("attn.proj", "attention/out")
    yield from layer_norm("norm2", "mlp_norm")
    yield from dense("mlp.fc1", "mlp/up")
    yield from dense("mlp.fc2", "mlp/down")


def _qformer_rows(model: VLM) -> Iterator[Row]:
    yield from layer_norm("embeddings.LayerNorm", "embed_norm")
    for i in range(model.connector.depth):
        looks = i % model.connector.cross_every == 0
        yield from under(f"encoder.layer.{i}.", f"blocks_{i}/", _qformer_block_rows(looks))


def _qformer_block_rows(looks: bool) -> Iterator[Row]:
    for theirs, ours in [("attention", "attention"), *[("crossattention", "cross")] * looks]:
        for name in ("query", "key", "value"):
            yield from dense(f"{theirs}.self.{name}", f"{ours}/{name}")
        yield from dense(f"{theirs}.output.dense", f"{ours}/out")
        yield from layer_norm(f"{theirs}.output.LayerNorm", f"{ours}_norm")
    yield from dense("intermediate_query.dense", "mlp/up")
    yield from dense("output_query.dense", "mlp/down")
    yield from layer_norm("output_query.LayerNorm", "mlp_norm")


def inputs(source: Json, tensors: Tensors) -> Inputs:
    """Shapes that the model may be called with: one image, a text without a place for it."""
    shapes = tensors.shapes()
    channels, patch = shapes["visual_encoder.patch_embed.proj.weight"][1:3]
    side = math.isqrt(shapes["visual_encoder.pos_embed"][1] - 1) * patch
    return jax.ShapeDtypeStruct((1, 1, side, side, channels), jnp.float32), *text_inputs(3)


FAMILY = Family("vlm", VLM, fields, rows)
MARKS = ("llama_proj.weight", "visual_encoder.cls_token", r"Qformer\.bert\.encoder\.layer\.0\..*", "query_tokens")
LEFT_OUT = re.compile(r".*\.rotary_emb\.inv_freq|Qformer\.cls\..*")
ALONE = (
    "MiniGPT-4's projection alone, without what it connects: put it in one file with visual_encoder.*, ln_vision.*, "
    "Qformer.*, query_tokens and llama_model.*"
)

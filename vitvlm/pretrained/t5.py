"""T5 weights of Hugging Face `transformers`: T5ForConditionalGeneration, of T5 1.1 and Flan-T5 too, and mT5's."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.models.t5 import T5
from vitvlm.pretrained import texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json, text_inputs
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, same, tied
from vitvlm.pretrained.vit import ACTIVATIONS, their_activation

SHARED, HEAD = "shared.weight", "lm_head.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", HEAD)  # of the table of tokens, in old files

# Of the cross-attention of old files, which have positions for none.
IDLE = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def t5_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("t5", ...)` from the config.json of a T5ForConditionalGeneration.

    Whether the head is the table of tokens, the tensors say: `transformers` writes `tie_word_embeddings: true` for a
    head of its own too. Whether logits are scaled, `scale_decoder_outputs` says, and in older files
    `tie_word_embeddings`.

    Raises ConfigError for an MLP or activation that we do not have, and for a config that contradicts itself.
    """
    if source["is_decoder"]:
        raise ConfigError("config.json: is_decoder True; only an encoder with a decoder is understood")
    mlp, activation = mlp_of(source)
    start = source.get("decoder_start_token_id")
    return {
        "vocab_size": source["vocab_size"],
        "width": source["d_model"],
        "head_dim": source["d_kv"],
        "mlp_width": source["d_ff"],
        "depth": source["num_layers"],
        "decoder_depth": source["num_decoder_layers"] or source["num_layers"],
        "heads": source["num_heads"],
        "buckets": source["relative_attention_num_buckets"],
        "max_distance": source["relative_attention_max_distance"],
        "mlp": mlp,
        "activation": activation,
        "norm_eps": source["layer_norm_epsilon"],
        "dropout": source["dropout_rate"],
        "attention_dropout": source["dropout_rate"],
        "tied": HEAD not in tensors or np.array_equal(tensors[HEAD], tensors[SHARED]),
        "scale_logits": bool(source.get("scale_decoder_outputs", source["tie_word_embeddings"] is not False)),
        "start_id": source["pad_token_id"] if start is None else start,
        "scan": False,
    }


def mt5_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """The same of an MT5ForConditionalGeneration, whose logits are never scaled."""
    return t5_fields(source, tensors) | {"scale_logits": False}


def mlp_of(source: Json) -> tuple[str, str]:
    """Returns `mlp` and `activation` from `feed_forward_proj`, in which "gated-gelu" means the tanh approximation."""
    said = source["feed_forward_proj"]
    gated, dash, name = said.rpartition("-")
    name = "gelu_new" if said == "gated-gelu" else name
    if gated not in ("", "gated") or name not in ACTIVATIONS:
        raise ConfigError(f"config.json: feed_forward_proj {said!r}; there is: {', '.join(ACTIVATIONS)}, or gated-…")
    for field, meant in (("is_gated_act", bool(dash)), ("dense_act_fn", name)):
        if source.get(field, meant) != meant:
            raise ConfigError(f"config.json: {field} {source[field]!r}, but feed_forward_proj is {said!r}")
    return "gated" if dash else "plain", ACTIVATIONS[name]


def t5_config(model: T5, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `t5_fields`."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": model.vocab_size,
        "d_model": model.width,
        "d_kv": model.head_dim or model.width // model.heads,
        "d_ff": model.mlp_width,
        "num_layers": model.depth,
        "num_decoder_layers": model.decoder_layers,
        "num_heads": model.heads,
        "relative_attention_num_buckets": model.buckets,
        "relative_attention_max_distance": model.max_distance,
        "feed_forward_proj": _feed_forward(model),
        "layer_norm_epsilon": model.norm_eps,
        "dropout_rate": model.dropout,
        "is_encoder_decoder": True,
        "decoder_start_token_id": model.start_id,
        "scale_decoder_outputs": model.scale_logits,
        "tie_word_embeddings": model.scale_logits,  # what decides about scaling for versions without the field above
    }


def _feed_forward(model: T5) -> str:
    name = their_activation(model.activation)
    if model.mlp == "gated":
        return f"gated-{'gelu' if name == 'gelu_new' else name}"
    return name


def t5_rows(model: T5, names: Collection[str]) -> Iterator[Row]:
    """Rows of a T5ForConditionalGeneration."""
    copies = [name for name in COPIES if name in names and (model.tied or name != HEAD)]
    yield row((SHARED, *copies), "embed/embedding", tied(1 + len(copies)))
    for side, depth in (("encoder", model.depth), ("decoder", model.decoder_layers)):
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield row(table, f"{side}/relative_buckets", same)
        for i in range(depth):
            yield from under(f"{side}.block.{i}.layer.", f"{side}/blocks_{i}/", _block_rows(model.mlp, side))
        yield row(f"{side}.final_layer_norm.weight", f"{side}/norm/scale", same)
    if not model.tied:
        yield from dense("lm_head", "head", bias=False)


def _block_rows(mlp: str, side: str) -> Iterator[Row]:
    parts = {"attention": "SelfAttention"} | ({"cross": "EncDecAttention"} if side == "decoder" else {})
    layers = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if mlp == "gated" else {"up": "wi", "down": "wo"}
    for place, (ours, theirs) in enumerate(parts.items()):
        for name in ("query", "key", "value", "out"):
            yield from dense(f"{place}.{theirs}.{name[0]}", f"{ours}/{name}", bias=False)
        yield row(f"{place}.layer_norm.weight", f"{ours}_norm/scale", same)
    for name, theirs in layers.items():
        yield from dense(f"{len(parts)}.DenseReluDense.{theirs}", f"mlp/{name}", bias=False)
    yield row(f"{len(parts)}.layer_norm.weight", "mlp_norm/scale", same)


FIELDS = {
    **anything("vocab_size", "width", "head_dim", "mlp_width", "depth", "decoder_depth", "heads", "buckets"),
    **anything("max_distance", "norm_eps", "dropout", "tied", "start_id", "scale_logits"),
    "attention_dropout": lambda model: model.attention_dropout == model.dropout,
    "mlp": ("plain", "gated"),
    # A gated MLP with the exact gelu has no name there.
    "activation": lambda model: (
        model.activation in ACTIVATIONS.values() and (model.mlp, model.activation) != ("gated", "gelu")
    ),
}
T5_LM = Family(
    "t5",
    T5,
    fields=t5_fields,
    rows=t5_rows,
    config=t5_config,
    model_type="t5",
    inputs=lambda source: text_inputs(3),
    rename=lambda name: None if name == IDLE else name,
    texts=texts.t5,
    expressible=Expressible("T5", T5, FIELDS),
)
MT5_LM = dataclasses.replace(T5_LM, fields=mt5_fields, model_type="mt5")

FAMILIES = {"T5ForConditionalGeneration": T5_LM, "MT5ForConditionalGeneration": MT5_LM}

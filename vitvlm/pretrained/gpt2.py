"""Weights of Hugging Face `transformers`: GPT2LMHeadModel (Radford et al. 2019)."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.decoder import Decoder
from vitvlm.pretrained import texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.llama import head_rows, is_tied, one_token
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import layer_norm, same, split_columns
from vitvlm.pretrained.vit import ACTIVATIONS, activation, their_activation

# What their code can do besides, and ours can not: the only value that is understood.
UNDERSTOOD = {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
EMBED = "transformer.wte.weight"


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("decoder", ...)` from the config.json of a GPT2LMHeadModel.

    Raises ConfigError for scores that are scaled by the layer's number, or cross-attention.
    """
    for name, value in UNDERSTOOD.items():
        if source[name] != value:
            raise ConfigError(f"config.json: {name} {source[name]!r}; only {value!r} is understood")
    return {
        "width": source["n_embd"],
        "depth": source["n_layer"],
        "heads": source["n_head"],
        "mlp_width": source["n_inner"] or 4 * source["n_embd"],
        "vocab_size": source["vocab_size"],
        "length": source["n_positions"],
        "positions": "learned",
        "norm": "layer",
        "norm_eps": source["layer_norm_epsilon"],
        "mlp": "plain",
        "activation": activation(source, "activation_function"),
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "query_scalar": None if source["scale_attn_weights"] else 1.0,
        "dropout": float(source["resid_pdrop"]),
        "embed_dropout": float(source["embd_pdrop"]),
        "attention_dropout": float(source["attn_pdrop"]),
        "tied": is_tied(source, tensors, EMBED),
        "scan": False,
    }


def config(model: Decoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `fields`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": model.width,
        "n_layer": model.depth,
        "n_head": model.heads,
        "n_inner": None if model.mlp_width == 4 * model.width else model.mlp_width,
        "vocab_size": model.vocab_size,
        "n_positions": model.length,
        "layer_norm_epsilon": model.norm_eps,
        "activation_function": their_activation(model.activation),
        "scale_attn_weights": model.query_scalar is None,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.embed_dropout,
        "attn_pdrop": model.attention_dropout,
        "tie_word_embeddings": model.tied,
    }


def rows(model: Decoder, names: Collection[str]) -> Iterator[Row]:
    """GPT2LMHeadModel; its kernels lie as ours, inputs first (Conv1D)."""
    yield from head_rows(model, names, EMBED)
    yield row("transformer.wpe.weight", "positions", same)
    for i in range(model.depth):
        yield from under(f"transformer.h.{i}.", f"blocks_{i}/", _block_rows())
    yield from layer_norm("transformer.ln_f", "norm")


def _block_rows() -> Iterator[Row]:
    yield from layer_norm("ln_1", "attention_norm")
    for theirs, ours in (("weight", "kernel"), ("bias", "bias")):
        three = tuple(f"attention/{name}/{ours}" for name in ("query", "key", "value"))
        yield row(f"attn.c_attn.{theirs}", three, split_columns(3))
    yield from layer_norm("ln_2", "mlp_norm")
    for theirs, ours in (("attn.c_proj", "attention/out"), ("mlp.c_fc", "mlp/up"), ("mlp.c_proj", "mlp/down")):
        yield row(f"{theirs}.weight", f"{ours}/kernel", same)
        yield row(f"{theirs}.bias", f"{ours}/bias", same)


def rename(name: str) -> str | None:
    """A tensor's name in the rows: the hub's first GPT-2s lack the prefix, and hold causality as a mask."""
    if name.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


FIELDS = {
    **anything("width", "depth", "heads", "mlp_width", "vocab_size", "length", "norm_eps", "tied"),
    **anything("dropout", "embed_dropout", "attention_dropout"),
    **{name: (True,) for name in ("qkv_bias", "out_bias", "mlp_bias")},
    "positions": ("learned",),
    "norm": ("layer",),
    "mlp": ("plain",),
    "activation": tuple(ACTIVATIONS.values()),
    "query_scalar": (None, 1.0),
}
FAMILY = Family(
    "decoder",
    Decoder,
    fields=fields,
    rows=rows,
    config=config,
    model_type="gpt2",
    inputs=one_token,
    rename=rename,
    texts=texts.fast,
    expressible=Expressible("GPT2LMHeadModel", Decoder, FIELDS),
)

FAMILIES = {"GPT2LMHeadModel": FAMILY}

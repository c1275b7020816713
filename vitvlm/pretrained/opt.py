"""Weights of Hugging Face `transformers`: OPTForCausalLM (Zhang et al. 2022)."""

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
from vitvlm.pretrained.transforms import dense, layer_norm, same
from vitvlm.pretrained.vit import ACTIVATIONS, activation, their_activation

# What their code can do besides, and ours can not: the only value that is understood.
UNDERSTOOD = {"layer_norm_elementwise_affine": True, "layerdrop": 0.0}
EMBED = "model.decoder.embed_tokens.weight"
OFFSET = 2  # rows of the table of positions that stand for nothing
NORM_EPS = 1e-5  # PyTorch's default, which no config says


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("decoder", ...)` from the config.json of an OPTForCausalLM.

    Raises ConfigError for norms without parameters, or layers that are dropped in training.
    """
    for name, value in UNDERSTOOD.items():
        if source[name] != value:
            raise ConfigError(f"config.json: {name} {source[name]!r}; only {value!r} is understood")
    width, embed_width = source["hidden_size"], source["word_embed_proj_dim"]
    before, bias = source["do_layer_norm_before"], source["enable_bias"]
    return {
        "width": width,
        "depth": source["num_hidden_layers"],
        "heads": source["num_attention_heads"],
        "mlp_width": source["ffn_dim"],
        "vocab_size": source["vocab_size"],
        "length": source["max_position_embeddings"],
        "positions": "learned",
        "position_offset": OFFSET,
        "embed_width": None if embed_width in (None, width) else embed_width,
        "norm": "layer",
        "norm_eps": NORM_EPS,
        "norms": "pre" if before else "post",
        "final_norm": before and not source["_remove_final_layer_norm"],
        "mlp": "plain",
        "activation": activation(source, "activation_function"),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bias,
        "dropout": float(source["dropout"]),
        "attention_dropout": float(source["attention_dropout"]),
        "tied": is_tied(source, tensors, EMBED),
        "scan": False,
    }


def config(model: Decoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `fields`."""
    before = model.norms == "pre"
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "ffn_dim": model.mlp_width,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.length,
        "word_embed_proj_dim": model.embed_width or model.width,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not model.final_norm,
        "layer_norm_elementwise_affine": True,
        "enable_bias": model.mlp_bias,
        "activation_function": their_activation(model.activation),
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "tie_word_embeddings": model.tied,
    }


def rows(model: Decoder, names: Collection[str]) -> Iterator[Row]:
    """OPTForCausalLM. A block's second norm is called "final" there, as is the one behind all blocks."""
    yield from head_rows(model, names, EMBED)
    yield row("model.decoder.embed_positions.weight", "positions", same)
    if model.embed_width is not None:
        yield from dense("model.decoder.project_in", "embed_in", bias=False)
        yield from dense("model.decoder.project_out", "embed_out", bias=False)
    for i in range(model.depth):
        yield from under(f"model.decoder.layers.{i}.", f"blocks_{i}/", _block_rows(model))
    if model.final_norm:
        yield from layer_norm("model.decoder.final_layer_norm", "norm")


def _block_rows(model: Decoder) -> Iterator[Row]:
    yield from layer_norm("self_attn_layer_norm", "attention_norm")
    for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out")):
        yield from dense(f"self_attn.{theirs}", f"attention/{ours}", model.qkv_bias)
    yield from layer_norm("final_layer_norm", "mlp_norm")
    yield from dense("fc1", "mlp/up", model.mlp_bias)
    yield from dense("fc2", "mlp/down", model.mlp_bias)


def rename(name: str) -> str:
    """A tensor's name in the rows: the hub's first OPTs lack the prefix."""
    return f"model.{name}" if name.startswith("decoder.") else name


def _one_bias(model: Decoder) -> bool:
    return model.qkv_bias == model.out_bias == model.mlp_bias


FIELDS = {
    **anything("width", "depth", "heads", "mlp_width", "vocab_size", "length", "embed_width", "tied"),
    **anything("dropout", "attention_dropout"),
    **{name: _one_bias for name in ("qkv_bias", "out_bias", "mlp_bias")},
    "positions": ("learned",),
    "position_offset": (OFFSET,),
    "norm": ("layer",),
    "norm_eps": (NORM_EPS,),
    "norms": ("pre", "post"),
    "final_norm": lambda model: model.norms == "pre" or not model.final_norm,
    "mlp": ("plain",),
    "activation": tuple(ACTIVATIONS.values()),
}
FAMILY = Family(
    "decoder",
    Decoder,
    fields=fields,
    rows=rows,
    config=config,
    model_type="opt",
    inputs=one_token,
    top="model",
    rename=rename,
    texts=texts.fast,
    expressible=Expressible("OPTForCausalLM", Decoder, FIELDS),
)

FAMILIES = {"OPTForCausalLM": FAMILY}

"""Weights of Hugging Face `transformers`: PhiForCausalLM (Phi-1, Phi-1.5 and Phi-2)."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.models.decoder import Decoder
from vitvlm.pretrained import rotary, texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.llama import head_dim, head_rows, is_tied, one_token, rope_fields, without_buffers
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, layer_norm, same
from vitvlm.pretrained.vit import ACTIVATIONS, activation, their_activation

ROTATED = 0.5  # of each head, where a config says nothing


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("decoder", ...)` from the config.json of a PhiForCausalLM."""
    rotated = source.get("partial_rotary_factor")
    return {
        "width": source["hidden_size"],
        "depth": source["num_hidden_layers"],
        "heads": source["num_attention_heads"],
        "kv_heads": source["num_key_value_heads"],
        "mlp_width": source["intermediate_size"],
        "vocab_size": source["vocab_size"],
        "length": source["max_position_embeddings"],
        "rope": rope_fields({**source, "partial_rotary_factor": ROTATED if rotated is None else rotated}, partly=True),
        "parallel": True,
        "norm": "layer",
        "norm_eps": source["layer_norm_eps"],
        "mlp": "plain",
        "activation": activation(source),
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "qk_norm": source["qk_layernorm"],
        "dropout": float(source["resid_pdrop"]),
        "embed_dropout": float(source["embd_pdrop"]),
        "attention_dropout": float(source["attention_dropout"] or 0),
        "tied": is_tied(source, tensors),
        "head_bias": True,
        "scan": False,
    }


def config(model: Decoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `fields`."""
    rope = rotary.both_forms(model.rope, head_dim(model))
    if model.rope.channels is None:
        rope |= {
            "partial_rotary_factor": 1.0,
            "rope_parameters": {**rope["rope_parameters"], "partial_rotary_factor": 1.0},
        }
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads or model.heads,
        "intermediate_size": model.mlp_width,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.length,
        "layer_norm_eps": model.norm_eps,
        "hidden_act": their_activation(model.activation),
        "qk_layernorm": model.qk_norm,
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.embed_dropout,
        "attention_dropout": model.attention_dropout,
        "tie_word_embeddings": model.tied,
        **rope,
    }


def rows(model: Decoder, names: Collection[str]) -> Iterator[Row]:
    """PhiForCausalLM."""
    yield from head_rows(model, names)
    yield row("lm_head.bias", "head_bias", same)
    for i in range(model.depth):
        yield from under(f"model.layers.{i}.", f"blocks_{i}/", _block_rows(model))
    yield from layer_norm("model.final_layernorm", "norm")


def _block_rows(model: Decoder) -> Iterator[Row]:
    yield from layer_norm("input_layernorm", "attention_norm")
    for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("dense", "out")):
        yield from dense(f"self_attn.{theirs}", f"attention/{ours}")
    if model.qk_norm:
        yield from layer_norm("self_attn.q_layernorm", "attention/query_norm")
        yield from layer_norm("self_attn.k_layernorm", "attention/key_norm")
    yield from dense("mlp.fc1", "mlp/up")
    yield from dense("mlp.fc2", "mlp/down")


FIELDS = {
    **anything(
        "width", "depth", "heads", "kv_heads", "mlp_width", "vocab_size", "length", "norm_eps", "tied", "qk_norm"
    ),
    **anything("dropout", "embed_dropout", "attention_dropout"),
    **{name: (True,) for name in ("parallel", "qkv_bias", "out_bias", "mlp_bias", "head_bias")},
    "rope": lambda model: rotary.is_said(model.rope, model.length),
    "norm": ("layer",),
    "mlp": ("plain",),
    "activation": tuple(ACTIVATIONS.values()),
}
FAMILY = Family(
    "decoder",
    Decoder,
    fields=fields,
    rows=rows,
    config=config,
    model_type="phi",
    inputs=one_token,
    top="model",
    rename=without_buffers,
    texts=texts.fast,
    expressible=Expressible("PhiForCausalLM", Decoder, FIELDS),
)

FAMILIES = {"PhiForCausalLM": FAMILY}

"""Weights of Hugging Face `transformers`: the texts' part of Gemma, GemmaForCausalLM, Gemma2- and Gemma3ForCausalLM."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.decoder import Decoder
from vitvlm.pretrained import rotary
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Json
from vitvlm.pretrained.llama import (
    COMMON,
    LLAMA,
    ONE_BIAS,
    WINDOWS,
    common_config,
    common_fields,
    head_dim,
    is_tied,
    layer_kinds,
    layers_of,
    model_rows,
    rope_fields,
    their_kinds,
    windows,
)
from vitvlm.pretrained.tables import Row
from vitvlm.pretrained.vit import ACTIVATIONS, activation, their_activation

SANDWICH = (
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "attention_output_norm"),
    ("pre_feedforward_layernorm", "mlp_norm"),
    ("post_feedforward_layernorm", "mlp_output_norm"),
)
FULL, SLIDING = "full_attention", "sliding_attention"


def family_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """The fields that all Gemmas have. Raises ConfigError for one that looks both ways (EmbeddingGemma)."""
    if source.get("use_bidirectional_attention"):
        raise ConfigError("config.json: use_bidirectional_attention True; only a model that looks back is read")
    bias = source["attention_bias"]
    return common_fields(source) | {
        "norm": "rms_zero_centred",
        "qkv_bias": bias,
        "out_bias": bias,
        "scale_embed": True,
        "tied": is_tied(source, tensors),
    }


def gemma_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("decoder", ...)` from the config.json of a GemmaForCausalLM.

    Its `hidden_act` "gelu" means the tanh approximation, as in the code that it was trained with.
    """
    own = activation(source)
    return family_fields(source, tensors) | {
        "activation": "gelu_tanh" if own == "gelu" else own,
        "rope": rope_fields(source),
    }


def gemma2_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """The same from that of a Gemma2ForCausalLM."""
    return _later_fields(source, tensors, layer_kinds(source, lambda i: i % 2 == 0)) | {
        "rope": rope_fields(source),
        "soft_cap": source["attn_logit_softcapping"],
    }


def gemma3_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """The same from that of a Gemma3ForCausalLM; its local layers have a rotary base of their own."""
    if source["attn_logit_softcapping"] is not None:
        raise ConfigError(
            "config.json: attn_logit_softcapping: transformers has it in the config alone; only None is read"
        )
    every = source.get("sliding_window_pattern") or source.get("_sliding_window_pattern") or 6
    return _later_fields(source, tensors, layer_kinds(source, lambda i: (i + 1) % every != 0)) | {
        "rope": _rope(source, FULL),
        "local_rope": _rope(source, SLIDING),
        "qk_norm": True,
    }


def _later_fields(source: Json, tensors: Tensors, kinds: Sequence[str]) -> dict[str, Any]:
    """The fields that Gemma 2 and 3 have in common."""
    return family_fields(source, tensors) | {
        "norms": "sandwich",
        "activation": activation(source, "hidden_activation"),
        "query_scalar": float(source["query_pre_attn_scalar"]),
        "logit_soft_cap": source["final_logit_softcapping"],
        **windows(kinds, source["sliding_window"]),
    }


def _rope(source: Json, layers: str) -> dict[str, Any]:
    """Rotary positions of one kind of layers; the old form scales those of global layers alone."""
    if layers == FULL:
        return rope_fields(source, layers)
    return rope_fields({**source, "rope_theta": source["rope_local_base_freq"], "rope_scaling": None}, layers)


def family_config(model: Decoder, name: str, model_type: str) -> dict[str, Any]:
    return common_config(model, name, model_type) | {"attention_bias": model.qkv_bias}


def gemma_config(model: Decoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `gemma_fields`."""
    return family_config(model, "GemmaForCausalLM", "gemma") | {
        "hidden_act": _activation(model),
        **rotary.both_forms(model.rope, head_dim(model)),
    }


def gemma2_config(model: Decoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `gemma2_fields`."""
    return family_config(model, "Gemma2ForCausalLM", "gemma2") | {
        "hidden_activation": _activation(model),
        "query_pre_attn_scalar": _scalar(model),
        "attn_logit_softcapping": model.soft_cap,
        "final_logit_softcapping": model.logit_soft_cap,
        "layer_types": their_kinds(layers_of(model)),
        "sliding_window": model.local,
        **rotary.both_forms(model.rope, head_dim(model)),
    }


def gemma3_config(model: Decoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `gemma3_fields`."""
    local_rope = model.local_rope or model.rope
    whole, local = (rotary.both_forms(rope, head_dim(model)) for rope in (model.rope, local_rope))
    return gemma2_config(model, params) | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "rope_theta": whole["rope_theta"],
        "rope_scaling": whole["rope_scaling"],
        "rope_local_base_freq": local["rope_theta"],
        "rope_parameters": {FULL: whole["rope_parameters"], SLIDING: local["rope_parameters"]},
    }


def _activation(model: Decoder) -> str:
    return "gelu_pytorch_tanh" if model.activation == "gelu_tanh" else their_activation(model.activation)


def _scalar(model: Decoder) -> int | float:
    scalar = head_dim(model) if model.query_scalar is None else model.query_scalar
    return int(scalar) if scalar == int(scalar) else scalar


def sandwich_rows(model: Decoder, names: Collection[str]) -> Iterator[Row]:
    """Gemma 2 and 3, whose blocks have four norms."""
    return model_rows(model, names, SANDWICH)


FIRST_ACTIVATIONS = tuple(name for name in ACTIVATIONS.values() if name != "gelu")  # which means another there
GEMMAS = COMMON | ONE_BIAS | {"norm": ("rms_zero_centred",), "scale_embed": (True,)}
SECOND = GEMMAS | WINDOWS | {"norms": ("sandwich",), **anything("query_scalar", "logit_soft_cap")}
THIRD = {
    "qk_norm": (True,),
    "local_rope": lambda model: (
        model.local_rope is None
        or (rotary.is_said(model.local_rope, model.length) and model.local_rope.scaling is None)
    ),
}

GEMMA = dataclasses.replace(
    LLAMA,
    fields=gemma_fields,
    config=gemma_config,
    model_type="gemma",
    expressible=Expressible("GemmaForCausalLM", Decoder, GEMMAS | {"activation": FIRST_ACTIVATIONS}),
)
GEMMA2 = dataclasses.replace(
    LLAMA,
    fields=gemma2_fields,
    rows=sandwich_rows,
    config=gemma2_config,
    model_type="gemma2",
    expressible=Expressible("Gemma2ForCausalLM", Decoder, SECOND | anything("soft_cap")),
)
GEMMA3 = dataclasses.replace(
    GEMMA2,
    fields=gemma3_fields,
    config=gemma3_config,
    model_type="gemma3_text",
    expressible=Expressible("Gemma3ForCausalLM", Decoder, SECOND | THIRD),
)

FAMILIES = {"GemmaForCausalLM": GEMMA, "Gemma2ForCausalLM": GEMMA2, "Gemma3ForCausalLM": GEMMA3}

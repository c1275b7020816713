"""Weights of Hugging Face `transformers`: LlamaForCausalLM, and its kin Mistral-, Qwen2- and Qwen3ForCausalLM."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.models.decoder import Decoder
from vitvlm.pretrained import rotary, texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Inputs, Json, text_inputs
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, same, tied
from vitvlm.pretrained.vit import ACTIVATIONS, activation, their_activation

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
KINDS = {"full_attention": "global", "sliding_attention": "local"}


def one_token(source: Json) -> Inputs:
    """Inputs of a language model: its parameters do not depend on their length."""
    return text_inputs(1)


def common_fields(source: Json) -> dict[str, Any]:
    """The fields that LLaMA and all its kin have, but for positions and layers."""
    return {
        "width": source["hidden_size"],
        "depth": source["num_hidden_layers"],
        "heads": source["num_attention_heads"],
        "kv_heads": source["num_key_value_heads"],
        "head_dim": source.get("head_dim"),
        "mlp_width": source["intermediate_size"],
        "vocab_size": source["vocab_size"],
        "length": source["max_position_embeddings"],
        "norm_eps": source["rms_norm_eps"],
        "attention_dropout": float(source["attention_dropout"] or 0),
        "scan": False,
    }


def rope_fields(source: Json, layers: str | None = None, **how: Any) -> dict[str, Any]:
    """The fields of a `Rope`; see `rotary`."""
    head_dim = source.get("head_dim") or source["hidden_size"] // source["num_attention_heads"]
    return rotary.fields(rotary.parameters(source, layers), source["max_position_embeddings"], head_dim, **how)


def is_tied(source: Json, tensors: Tensors, embed: str = EMBED, head: str = HEAD) -> bool:
    """Tells whether the head is the table of tokens: if the config says so, and the file has no other head.

    A file may have both, the same numbers twice.
    """
    if not source["tie_word_embeddings"] or head not in tensors or embed not in tensors:
        return bool(source["tie_word_embeddings"])
    return np.array_equal(tensors[head], tensors[embed])


def llama_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("decoder", ...)` from the config.json of a LlamaForCausalLM."""
    bias = source["attention_bias"]
    return common_fields(source) | {
        "activation": activation(source),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": source["mlp_bias"],
        "rope": rope_fields(source),
        "tied": is_tied(source, tensors),
    }


def mistral_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """The same from that of a MistralForCausalLM, whose layers are local all or none."""
    return common_fields(source) | {
        "activation": activation(source),
        "rope": rope_fields(source),
        "tied": is_tied(source, tensors),
        **windows(["local"] if source["sliding_window"] else ["global"], source["sliding_window"]),
    }


def qwen2_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """The same from that of a Qwen2ForCausalLM."""
    return qwen_fields(source, tensors) | {"qkv_bias": True}


def qwen3_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """The same from that of a Qwen3ForCausalLM."""
    bias = source["attention_bias"]
    return qwen_fields(source, tensors) | {"qkv_bias": bias, "out_bias": bias, "qk_norm": True}


def qwen_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    first = source["max_window_layers"] if source["use_sliding_window"] and source["sliding_window"] else None
    kinds = layer_kinds(source, lambda i: first is not None and i >= first)
    if first is None:
        kinds = ["global"] * len(kinds)
    return common_fields(source) | {
        "activation": activation(source),
        "rope": rope_fields(source),
        "tied": is_tied(source, tensors),
        **windows(kinds, source["sliding_window"]),
    }


def layer_kinds(source: Json, is_local: Callable[[int], bool]) -> list[str]:
    """The kind of each layer: as `layer_types` says, or else by the layer's number. Raises ConfigError for others."""
    depth, types = source["num_hidden_layers"], source.get("layer_types")
    if types is None:
        return ["local" if is_local(i) else "global" for i in range(depth)]
    if len(types) != depth or (unknown := set(types) - KINDS.keys()):
        found = sorted(unknown)[0] if len(types) == depth else f"of {len(types)} layers, but there are {depth}"
        raise ConfigError(f"config.json: layer_types: {found}; there is: {', '.join(KINDS)}")
    return [KINDS[each] for each in types]


def windows(kinds: Sequence[str], window: int | None) -> dict[str, Any]:
    """The fields `pattern`, as short as can be, and `local`."""
    period = next(p for p in range(1, len(kinds) + 1) if all(kind == kinds[i % p] for i, kind in enumerate(kinds)))
    return {"pattern": tuple(kinds[:period]), "local": window if "local" in kinds else None}


def common_config(model: Decoder, name: str, model_type: str) -> dict[str, Any]:
    """The inverse of `common_fields`."""
    return {
        "architectures": [name],
        "model_type": model_type,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads or model.heads,
        "head_dim": head_dim(model),
        "intermediate_size": model.mlp_width,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.length,
        "rms_norm_eps": model.norm_eps,
        "attention_dropout": model.attention_dropout,
        "tie_word_embeddings": model.tied,
    }


def head_dim(model: Decoder) -> int:
    return model.head_dim or model.width // model.heads


def llama_config(model: Decoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `llama_fields`."""
    return common_config(model, "LlamaForCausalLM", "llama") | {
        "hidden_act": their_activation(model.activation),
        "attention_bias": model.qkv_bias,
        "mlp_bias": model.mlp_bias,
        **rotary.both_forms(model.rope, head_dim(model)),
    }


def mistral_config(model: Decoder, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `mistral_fields`."""
    return common_config(model, "MistralForCausalLM", "mistral") | {
        "hidden_act": their_activation(model.activation),
        "sliding_window": model.local if "local" in model.pattern else None,
        **rotary.both_forms(model.rope, head_dim(model)),
    }


def qwen_config(model: Decoder, params: Mapping[str, Any], name: str, model_type: str) -> dict[str, Any]:
    """The inverse of `qwen2_fields` and `qwen3_fields`."""
    kinds = layers_of(model)
    local = "local" in kinds
    found = common_config(model, name, model_type) | {
        "hidden_act": their_activation(model.activation),
        "use_sliding_window": local,
        "sliding_window": model.local if local else None,
        "layer_types": their_kinds(kinds),
        **rotary.both_forms(model.rope, head_dim(model)),
    }
    if local:  # for versions that do not know layer_types
        found["max_window_layers"] = kinds.index("local")
    return found | ({"attention_bias": model.qkv_bias} if model_type == "qwen3" else {})


def layers_of(model: Decoder) -> list[str]:
    return [model.pattern[i % len(model.pattern)] for i in range(model.depth)]


def their_kinds(kinds: Sequence[str]) -> list[str]:
    names = {ours: theirs for theirs, ours in KINDS.items()}
    return [names[kind] for kind in kinds]


def model_rows(model: Decoder, names: Collection[str], norms: Sequence[tuple[str, str]] = ()) -> Iterator[Row]:
    """A model of LLaMA's names, with its head.

    Args:
      norms: of a block, their names and ours; by default those of pre-norm blocks.
    """
    yield from head_rows(model, names)
    norms = norms or (("input_layernorm", "attention_norm"), ("post_attention_layernorm", "mlp_norm"))
    for i in range(model.depth):
        yield from under(f"model.layers.{i}.", f"blocks_{i}/", _block_rows(model, norms))
    yield row("model.norm.weight", "norm/scale", same)


def head_rows(model: Decoder, names: Collection[str], embed: str = EMBED, head: str = HEAD) -> Iterator[Row]:
    """The table of tokens, and the head, which may be the same table, in a file once or twice."""
    if model.tied:
        places = (embed, head) if head in names else (embed,)
        yield row(places, "embed/embedding", tied(len(places)))
    else:
        yield row(embed, "embed/embedding", same)
        yield from dense(head.removesuffix(".weight"), "head", bias=False)


def _block_rows(model: Decoder, norms: Sequence[tuple[str, str]]) -> Iterator[Row]:
    for theirs, ours in norms:
        yield row(f"{theirs}.weight", f"{ours}/scale", same)
    for name in ("query", "key", "value"):
        yield from dense(f"self_attn.{name[0]}_proj", f"attention/{name}", model.qkv_bias)
        if model.qk_norm and name != "value":
            yield row(f"self_attn.{name[0]}_norm.weight", f"attention/{name}_norm/scale", same)
    yield from dense("self_attn.o_proj", "attention/out", model.out_bias)
    for name in ("gate", "up", "down"):
        yield from dense(f"mlp.{name}_proj", f"mlp/{name}", model.mlp_bias)


def without_buffers(name: str) -> str | None:
    """A tensor's name; None for the frequencies of rotary positions, which old files hold."""
    return None if name.endswith(".rotary_emb.inv_freq") else name


COMMON = {
    **anything("width", "depth", "heads", "kv_heads", "head_dim", "mlp_width", "vocab_size", "length", "norm_eps"),
    **anything("attention_dropout", "tied"),
    "activation": tuple(ACTIVATIONS.values()),
    "rope": lambda model: rotary.is_said(model.rope, model.length) and model.rope.channels is None,
}
WINDOWS = anything("pattern", "local")
ONE_BIAS = {"qkv_bias": lambda model: model.qkv_bias == model.out_bias, **anything("out_bias")}
ONE_KIND = {"pattern": (("global",), ("local",)), **anything("local")}

LLAMA = Family(
    "decoder",
    Decoder,
    fields=llama_fields,
    rows=model_rows,
    config=llama_config,
    model_type="llama",
    inputs=one_token,
    top="model",
    rename=without_buffers,
    texts=texts.fast,
    expressible=Expressible("LlamaForCausalLM", Decoder, COMMON | ONE_BIAS | anything("mlp_bias")),
)
MISTRAL = dataclasses.replace(
    LLAMA,
    fields=mistral_fields,
    config=mistral_config,
    model_type="mistral",
    expressible=Expressible("MistralForCausalLM", Decoder, COMMON | ONE_KIND),
)
QWEN2 = dataclasses.replace(
    LLAMA,
    fields=qwen2_fields,
    config=functools.partial(qwen_config, name="Qwen2ForCausalLM", model_type="qwen2"),
    model_type="qwen2",
    expressible=Expressible("Qwen2ForCausalLM", Decoder, COMMON | WINDOWS | {"qkv_bias": (True,)}),
)
QWEN3 = dataclasses.replace(
    LLAMA,
    fields=qwen3_fields,
    config=functools.partial(qwen_config, name="Qwen3ForCausalLM", model_type="qwen3"),
    model_type="qwen3",
    expressible=Expressible("Qwen3ForCausalLM", Decoder, COMMON | WINDOWS | ONE_BIAS | {"qk_norm": (True,)}),
)

FAMILIES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
}

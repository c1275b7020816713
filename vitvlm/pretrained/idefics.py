"""Idefics 1 of Hugging Face `transformers`, a Flamingo on LLaMA and CLIP: IdeficsForVisionText2Text."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vitvlm.core import json_texts
from vitvlm.core.config import ConfigError
from vitvlm.core.files import LARGEST_VOCABULARY, read_text
from vitvlm.models.connectors.cross_attention import CrossAttention
from vitvlm.models.cross_layers import CrossLayers
from vitvlm.models.decoder import Decoder
from vitvlm.models.vit import ViT
from vitvlm.models.vlm import VLM
from vitvlm.pretrained import clip, llama, rotary, texts
from vitvlm.pretrained.entries import Tensors, blamed
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Inputs, Json, described_images, text_inputs
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, layer_norm, same, scalar, token
from vitvlm.pretrained.vit import ACTIVATIONS, activation, their_activation

IMAGE_TOKEN = "<image>"
ALPHAS = {"float": False, "vector": True}  # whether a gate is a number for each channel
OF_THE_MODEL = dict.fromkeys(("heads", "head_dim", "mlp_width", "mlp", "activation", "norm", "norm_eps", "bias"))


def idefics_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vlm", ...)` from the config.json of an IdeficsForVisionText2Text.

    Raises ConfigError for gates of another type than a number or a vector.
    """
    vision, perceiver = source["vision_config"], source["perceiver_config"]
    if source["alpha_type"] not in ALPHAS:
        raise ConfigError(f"config.json: alpha_type {source['alpha_type']!r}; there is: {', '.join(ALPHAS)}")
    layers = {"every": source["cross_layer_interval"], "qk_norm": source["qk_layer_norms"]}
    return {
        "image": {"name": "vit", **clip.vision_fields(vision | {"hidden_size": vision["embed_dim"]})},
        "connector": {
            "name": "gated_cross_attention",
            "depth": perceiver["resampler_depth"] if source["use_resampler"] else 0,
            "latents": perceiver["resampler_n_latents"],
            "heads": perceiver["resampler_n_heads"],
            "head_dim": perceiver["resampler_head_dim"],
            "qk_norm": perceiver["qk_layer_norms_perceiver"],
            "activation": "relu",
            "look": OF_THE_MODEL | layers | {"gate_channels": ALPHAS[source["alpha_type"]]},
        },
        "text": {"name": "decoder", **_text_fields(source, tensors)},
        "keep_prefix": True,
        "scan": False,
    }


def _text_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    heads = {"num_key_value_heads": None, "head_dim": None, "attention_dropout": source["dropout"]}
    fields = llama.common_fields({**source, **heads})
    added = source["additional_vocab_size"]
    del fields["scan"]  # as the whole model's
    return fields | {
        "vocab_size": source["vocab_size"] + added,
        "added_tokens": added,
        "activation": activation(source),
        "dropout": float(source["dropout"]),
        "rope": llama.rope_fields({**source, "head_dim": None}),
        "tied": llama.is_tied(source, tensors),
    }


def idefics_config(model: VLM, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `idefics_fields`."""
    text, connector = model.text, model.connector
    vision = clip.vision_config(model.image, params["image"])
    vision |= {"model_type": "idefics_vision", "embed_dim": vision.pop("hidden_size")}
    return {
        "architectures": ["IdeficsForVisionText2Text"],
        "model_type": "idefics",
        "vocab_size": text.vocab_size - text.added_tokens,
        "additional_vocab_size": text.added_tokens,
        "hidden_size": text.width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "intermediate_size": text.mlp_width,
        "hidden_act": their_activation(text.activation),
        "max_position_embeddings": text.length,
        "rms_norm_eps": text.norm_eps,
        "dropout": text.dropout,
        "tie_word_embeddings": text.tied,
        "rope_parameters": rotary.entries(text.rope, llama.head_dim(text)),
        "cross_layer_interval": connector.look.every,
        "qk_layer_norms": bool(connector.look.qk_norm),
        "alpha_type": "vector" if connector.look.gate_channels else "float",
        "use_resampler": connector.depth > 0,
        "vision_config": vision,
        "perceiver_config": {
            "model_type": "idefics_perciever",  # as it is spelt there
            "resampler_depth": connector.depth or 6,
            "resampler_n_latents": connector.latents,
            "resampler_n_heads": connector.heads,
            "resampler_head_dim": connector.head_dim,
            "qk_layer_norms_perceiver": connector.qk_norm,
        },
    }


def idefics_rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of an IdeficsForVisionText2Text."""
    text, connector = model.text, model.connector
    yield from under("model.vision_model.", "image/", clip.vision_rows(model.image))
    if connector.depth:
        yield from under("model.perceiver_resampler.", "connector/perceiver/", _perceiver_rows(connector))
    yield from under("", "text/", llama.model_rows(text, names))
    if text.added_tokens:
        yield row("model.embed_tokens.additional_embedding.weight", "text/embed_added/embedding", same)
        if not text.tied:
            yield from dense("lm_head.additional_fc", "text/head_added", bias=False)
    for number, layer in enumerate(filter(text.cross.looks, range(text.depth))):
        theirs, ours = f"model.gated_cross_attn_layers.{number}.", f"text/blocks_{layer}/look/"
        yield from under(theirs, ours, _look_rows(text.cross))


def _perceiver_rows(connector: CrossAttention) -> Iterator[Row]:
    yield row("latents", "latents", same)
    for i in range(connector.depth):
        attention, mlp = f"blocks.{i}.0.", f"blocks.{i}.1."
        yield from layer_norm(f"{attention}context_layer_norm", f"blocks_{i}/context_norm")
        yield from layer_norm(f"{attention}latents_layer_norm", f"blocks_{i}/cross_norm")
        for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("output_proj", "out")):
            yield from dense(f"{attention}{theirs}", f"blocks_{i}/cross/{ours}", bias=False)
        for name in ("query", "key") * connector.qk_norm:
            yield from layer_norm(f"{attention}{name[0]}_layer_norm", f"blocks_{i}/cross/{name}_norm")
        yield from layer_norm(f"{mlp}ln", f"blocks_{i}/mlp_norm")
        yield from dense(f"{mlp}fc", f"blocks_{i}/mlp/up", bias=False)
        yield from dense(f"{mlp}c_proj", f"blocks_{i}/mlp/down", bias=False)
    yield from layer_norm("layer_norm", "norm")


def _look_rows(layers: CrossLayers) -> Iterator[Row]:
    yield row("input_layernorm.weight", "cross_norm/scale", same)
    yield row("post_attention_layernorm.weight", "mlp_norm/scale", same)
    for name in ("query", "key", "value", "out"):
        yield from dense(f"cross_attn.{name[0]}_proj", f"cross/{name}", bias=False)
    for name in ("query", "key") * bool(layers.qk_norm):
        yield row(f"cross_attn.{name[0]}_layer_norm.weight", f"cross/{name}_norm/scale", same)
    for name in ("gate", "up", "down"):
        yield from dense(f"mlp.{name}_proj", f"mlp/{name}", bias=False)
    gate = token if layers.gate_channels else scalar
    yield row("alpha_cross_attn", "cross_gate", gate)
    yield row("alpha_dense", "mlp_gate", gate)


def idefics_inputs(source: Json) -> Inputs:
    """One text of one token with one image."""
    (image,) = described_images(source["vision_config"])
    return (jax.ShapeDtypeStruct((1, *image.shape), jnp.float32), *text_inputs(1))


def image_token_beside(folder: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns which id marks an image, by the tokenizer's files; nothing without one."""
    for name, entries in (("tokenizer.json", "added_tokens"), ("added_tokens.json", None)):
        if not (folder / name).is_file():
            continue
        with blamed(folder / name):
            found = json_texts.loads(read_text(folder / name, LARGEST_VOCABULARY))
            if entries is not None:
                found = {each["content"]: each["id"] for each in found.get(entries, ())}
            if IMAGE_TOKEN in found:
                return {"image_token": int(found[IMAGE_TOKEN])}
    return {}


def _are_theirs(model: CrossAttention) -> bool:
    """Tells whether the layers that look are of the language model's own sizes, gated, from the first on."""
    own = ("heads", "head_dim", "kv_heads", "mlp_width", "mlp", "activation", "norm", "norm_eps", "bias")
    return (model.look.kind, model.look.first) == ("gated", 0) and not any(
        getattr(model.look, name) is not None for name in own
    )


CONNECTOR_FIELDS = {
    **anything("width", "latents", "depth", "heads", "head_dim", "qk_norm"),
    "look": _are_theirs,
    "activation": ("relu",),
    "sees": ("last",),
}
TEXT_FIELDS = {
    **anything("width", "depth", "heads", "mlp_width", "vocab_size", "added_tokens", "length", "norm_eps", "tied"),
    **anything("cross", "dropout"),
    "head_dim": lambda model: model.head_dim in (None, model.width // model.heads),
    "kv_heads": lambda model: model.kv_heads in (None, model.heads),
    "attention_dropout": lambda model: model.attention_dropout == model.dropout,
    "activation": tuple(ACTIVATIONS.values()),
    "rope": lambda model: rotary.is_said(model.rope, model.length) and model.rope.channels is None,
}
FIELDS = {
    "image": Expressible("Idefics", ViT, clip.VISION_FIELDS),
    "connector": Expressible("Idefics", CrossAttention, CONNECTOR_FIELDS),
    "text": Expressible("Idefics", Decoder, TEXT_FIELDS),
    "keep_prefix": (True,),
    **anything("image_token"),
}

FAMILIES = {
    "IdeficsForVisionText2Text": Family(
        "vlm",
        VLM,
        fields=idefics_fields,
        rows=idefics_rows,
        config=idefics_config,
        model_type="idefics",
        inputs=idefics_inputs,
        rename=llama.without_buffers,
        top="model",
        texts=texts.fast,
        read_beside=image_token_beside,
        expressible=Expressible("IdeficsForVisionText2Text", VLM, FIELDS),
    )
}

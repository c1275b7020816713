"""OpenFlamingo (Awadalla et al. 2023): its tensors' names, beside a config.json that says what its code is called with.

Their checkpoints have no description of the model. A folder has the config.json of the parts, as `transformers` writes
them for CLIP's image tower and for the language model, and the arguments of their `create_model_and_transforms`:

    {"architectures": ["OpenFlamingo"], "model_type": "open_flamingo", "cross_attn_every_n_layers": 4,
     "media_token_id": 32001, "eoc_token_id": 32000, "vision_config": {…}, "text_config": {"model_type": "llama", …}}

A text is "<image>what it shows<|endofchunk|>", as often as there are images.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vitvlm.core.config import ConfigError
from vitvlm.models.connectors.cross_attention import FLAMINGO, CrossAttention
from vitvlm.models.decoder import Decoder
from vitvlm.models.vit import ViT
from vitvlm.models.vlm import VLM
from vitvlm.pretrained import clip, config_defaults, llama, open_clip_rows, texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Inputs, Json, described_images, text_inputs
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, layer_norm, same, scalar, split_linear, unused

LAYERS = "model.layers."  # of the language model, a LLaMA
VISION, PERCEIVER, LANGUAGE = "vision_encoder.", "perceiver.", "lang_encoder."
COPIES = (f"{LANGUAGE}gated_cross_attn_layers.", f"{LANGUAGE}old_decoder_blocks.")  # of tensors of the layers


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vlm", ...)`. The CLIP is open_clip's, whose tokens are taken before its last norm.

    Raises ConfigError for a language model that is no LLaMA.
    """
    text, every = source["text_config"], source["cross_attn_every_n_layers"]
    if (kind := text.get("model_type")) != "llama":
        raise ConfigError(f"config.json: text_config.model_type {kind!r}; only 'llama' is understood")
    of_text = llama.llama_fields(config_defaults.completed("llama", text), tensors.under(LANGUAGE).renamed(_plain))
    depth = 1 + max((int(name.split(".")[2]) for name in tensors if name.startswith(f"{PERCEIVER}layers.")), default=-1)
    looks = {**FLAMINGO, "every": every, "first": every - 1, "mlp_width": 4 * of_text["width"]}
    return {
        "image": {"name": "vit", **clip.vision_fields(source["vision_config"])},
        "connector": {
            "name": "gated_cross_attention",
            "latents": tensors.shapes().get(f"{PERCEIVER}latents", (64,))[0],
            "depth": depth,
            "look": looks,
        },
        "text": {"name": "decoder", **{name: value for name, value in of_text.items() if name != "scan"}},
        "image_token": source["media_token_id"],
        "scan": False,
    }


def described(model: VLM, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `fields`; which token ends what is said of an image, the model does not know."""
    return {
        "architectures": ["OpenFlamingo"],
        "model_type": "open_flamingo",
        "cross_attn_every_n_layers": model.text.cross.every,
        "media_token_id": model.image_token,
        "vision_config": clip.vision_config(model.image, params["image"]),
        "text_config": llama.llama_config(model.text, params["text"]),
    }


def rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of their `Flamingo`, each layer of the language model wrapped, those without a gated one too."""
    yield from under(VISION, "image/", open_clip_rows.image_rows(model.image))
    yield from layer_norm(f"{VISION}ln_post", "image/norm")
    if f"{VISION}proj" in names:  # of CLIP's pooled vector
        yield row(f"{VISION}proj", (), unused((model.image.width, model.image.width)))
    yield from under(PERCEIVER, "connector/perceiver/", _perceiver_rows(model.connector.depth))
    of_text = [_plain(name.removeprefix(LANGUAGE)) for name in names if name.startswith(LANGUAGE)]
    for each in llama.model_rows(model.text, of_text):
        theirs = tuple(f"{LANGUAGE}{_wrapped(name)}" for name in each.theirs)
        yield from under("", "text/", [dataclasses.replace(each, theirs=theirs)])
    for i in filter(model.text.cross.looks, range(model.text.depth)):
        theirs = f"{LANGUAGE}{LAYERS}{i}.gated_cross_attn_layer."
        yield from under(theirs, f"text/blocks_{i}/look/", _gated_rows())


def _wrapped(name: str) -> str:
    """The name of the language model's tensor where each of its layers is the `decoder_layer` of another."""
    if not name.startswith(LAYERS):
        return name
    number, _, rest = name.removeprefix(LAYERS).partition(".")
    return f"{LAYERS}{number}.decoder_layer.{rest}"


def _plain(name: str) -> str | None:
    """The inverse of `_wrapped`; None for what is no tensor of the language model by itself."""
    if not name.startswith(LAYERS):
        return name
    number, _, rest = name.removeprefix(LAYERS).partition(".")
    inner = rest.removeprefix("decoder_layer.")
    return None if inner == rest else f"{LAYERS}{number}.{inner}"


def _attention_rows(theirs: str, ours: str) -> Iterator[Row]:
    yield from dense(f"{theirs}to_q", f"{ours}/query", bias=False)
    yield row(f"{theirs}to_kv.weight", (f"{ours}/key/kernel", f"{ours}/value/kernel"), split_linear(2))
    yield from dense(f"{theirs}to_out", f"{ours}/out", bias=False)


def _mlp_rows(theirs: str) -> Iterator[Row]:
    yield from layer_norm(f"{theirs}0", "mlp_norm")
    yield from dense(f"{theirs}1", "mlp/up", bias=False)
    yield from dense(f"{theirs}3", "mlp/down", bias=False)


def _perceiver_rows(depth: int) -> Iterator[Row]:
    yield row("latents", "latents", same)
    for i in range(depth):
        yield from layer_norm(f"layers.{i}.0.norm_media", f"blocks_{i}/context_norm")
        yield from layer_norm(f"layers.{i}.0.norm_latents", f"blocks_{i}/cross_norm")
        yield from _attention_rows(f"layers.{i}.0.", f"blocks_{i}/cross")
        yield from under("", f"blocks_{i}/", _mlp_rows(f"layers.{i}.1."))
    yield from layer_norm("norm", "norm")


def _gated_rows() -> Iterator[Row]:
    yield from layer_norm("attn.norm", "cross_norm")
    yield from _attention_rows("attn.", "cross")
    yield from _mlp_rows("ff.")
    yield row("attn_gate", "cross_gate", scalar)
    yield row("ff_gate", "mlp_gate", scalar)


def inputs(source: Json) -> Inputs:
    """One text of one token with one image."""
    (image,) = described_images(source["vision_config"])
    return (jax.ShapeDtypeStruct((1, *image.shape), jnp.float32), *text_inputs(1))


def _are_theirs(model: CrossAttention) -> bool:
    layers = model.look
    own = {**FLAMINGO, "kind": "gated", "bias": False, "first": layers.every - 1, "gate_channels": False}
    return all(getattr(layers, name) == value for name, value in own.items()) and not layers.qk_norm


CONNECTOR_FIELDS = {
    **anything("width", "latents", "depth"),
    "look": _are_theirs,
    "sees": ("last",),
}
FIELDS = {
    "image": Expressible("OpenFlamingo", ViT, clip.VISION_FIELDS),
    "connector": Expressible("OpenFlamingo", CrossAttention, CONNECTOR_FIELDS),
    "text": Expressible("OpenFlamingo", Decoder, llama.COMMON | llama.ONE_BIAS | anything("mlp_bias", "cross")),
    **anything("image_token"),
}

FAMILIES = {
    "OpenFlamingo": Family(
        "vlm",
        VLM,
        fields=fields,
        rows=rows,
        config=described,
        model_type="open_flamingo",
        inputs=inputs,
        rename=lambda name: None if name.startswith(COPIES) else name,
        top="vision_encoder",
        texts=texts.fast,
        expressible=Expressible("OpenFlamingo", VLM, FIELDS),
    )
}

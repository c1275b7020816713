"""nanoVLM weights: config.json with the fields of its VLMConfig, and model.safetensors with `vision_encoder.*`,
`MP.proj.weight` and `decoder.*`. Neither names an architecture: the fields tell."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.models.connectors.pixel_shuffle import PixelShuffle
from vitvlm.models.decoder import Decoder
from vitvlm.models.vit import ViT
from vitvlm.models.vlm import VLM
from vitvlm.nn.patches import as_pair
from vitvlm.nn.rope import Rope, Scaling
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Inputs, Json
from vitvlm.pretrained.tables import Row, Transform, row, under
from vitvlm.pretrained.transforms import conv, dense, layer_norm, positions, qkv, qkv_bias, same, tied
from vitvlm.pretrained.vit import is_square

NAME = "VisionLanguageModel"  # its class
EMBED, HEAD, FREQUENCIES = "decoder.token_embedding.weight", "decoder.head.weight", "decoder.rotary_embd.inv_freq"
EXTRA = {"image_token": "<|image|>", "global_image_token": "<|global_image|>"}
EXTRA |= {f"r{r}c{c}": f"<row_{r}_col_{c}>" for r in range(1, 9) for c in range(1, 9)}  # tokens that it adds
ACTIVATION = "gelu_tanh"
# What no other program's config.json says of a model; an old one leaves out the tokens that it does not add.
FIELDS_OF_ITS_OWN = {"vit_hidden_dim", "lm_hidden_dim", "mp_pixel_shuffle_factor"}


def recognises(source: Json) -> bool:
    """Tells whether a config.json without architectures and model_type is nanoVLM's."""
    return source.keys() >= FIELDS_OF_ITS_OWN


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vlm", ...)` from nanoVLM's config.json.

    The image token is the first that it adds to the tokenizer's; an old model adds none, and its images come first.
    Texts longer than lm_max_position_embeddings are turned by angles as much smaller.
    Raises ConfigError for an encoder that gives CLS alone, and for rotated queries and keys with a factor.
    """
    if source["vit_cls_flag"]:
        raise ConfigError("config.json: vit_cls_flag true: an encoder that gives its CLS token alone has no grid")
    if source["lm_attn_scaling"] != 1:
        raise ConfigError(f"config.json: lm_attn_scaling {source['lm_attn_scaling']}; only 1 is read")
    extra = list(source["vlm_extra_tokens"])
    return {
        "image": {
            "name": "vit",
            "width": source["vit_hidden_dim"],
            "depth": source["vit_n_blocks"],
            "heads": source["vit_n_heads"],
            "mlp_width": source["vit_inter_dim"],
            "patch_size": source["vit_patch_size"],
            "image_size": source["vit_img_size"],
            "norm_eps": source["vit_ln_eps"],
            "dropout": source["vit_dropout"],
            "attention_dropout": source["vit_dropout"],
            "activation": ACTIVATION,
            "pool": "gap",
        },
        "connector": {"name": "pixel_shuffle", "factor": source["mp_pixel_shuffle_factor"]},
        "text": {
            "name": "decoder",
            "width": source["lm_hidden_dim"],
            "depth": source["lm_n_blocks"],
            "heads": source["lm_n_heads"],
            "kv_heads": source["lm_n_kv_heads"],
            "mlp_width": source["lm_inter_dim"],
            "vocab_size": source["lm_vocab_size"],
            "length": source["lm_max_position_embeddings"],
            "norm_eps": source["lm_rms_eps"],
            "rope": {
                "base": float(source["lm_re_base"]),
                "scaling": {
                    "kind": "dynamic_linear",
                    "factor": 1.0,
                    "original_length": source["lm_max_position_embeddings"],
                },
            },
            "dropout": source["lm_dropout"],
            "attention_dropout": source["lm_dropout"],
            "tied": bool(source["lm_tie_weights"]),
        },
        "image_token": source["lm_base_vocab_size"] + extra.index("image_token") if "image_token" in extra else None,
        "scan": False,
    }


def config(model: VLM, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `fields`."""
    image, text = model.image, model.text
    base = text.vocab_size if model.image_token is None else model.image_token
    grid = as_pair(image.image_size)[0] // as_pair(image.patch_size)[0]
    return {
        "architectures": [NAME],
        "vit_hidden_dim": image.width,
        "vit_n_blocks": image.depth,
        "vit_n_heads": image.heads,
        "vit_inter_dim": image.mlp_width,
        "vit_patch_size": as_pair(image.patch_size)[0],
        "vit_img_size": as_pair(image.image_size)[0],
        "vit_ln_eps": image.norm_eps,
        "vit_dropout": image.dropout,
        "vit_cls_flag": False,
        "mp_pixel_shuffle_factor": model.connector.factor,
        "mp_image_token_length": (grid // model.connector.factor) ** 2,
        "lm_hidden_dim": text.width,
        "lm_n_blocks": text.depth,
        "lm_n_heads": text.heads,
        "lm_n_kv_heads": text.kv_heads or text.heads,
        "lm_inter_dim": text.mlp_width,
        "lm_vocab_size": text.vocab_size,
        "lm_base_vocab_size": base,
        "extra_token_amount": text.vocab_size - base,
        "lm_max_position_embeddings": text.length,
        "lm_rms_eps": text.norm_eps,
        "lm_re_base": int(text.rope.base),
        "lm_dropout": text.dropout,
        "lm_tie_weights": text.tied,
        "lm_attn_scaling": 1.0,
        "vlm_extra_tokens": dict(list(EXTRA.items())[: text.vocab_size - base]),
    }


def rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of nanoVLM's model.safetensors."""
    yield from under("vision_encoder.", "image/", _vision_rows(model.image))
    yield from dense("MP.proj", "connector/layers_0", bias=False)
    yield from under("", "text/", _text_rows(model.text, names))


def _vision_rows(model: ViT) -> Iterator[Row]:
    yield row("patch_embedding.conv.weight", "patches/kernel", conv)
    yield row("patch_embedding.conv.bias", "patches/bias", same)
    yield row("patch_embedding.position_embedding", ("positions/grid",), positions(model.table_grid))
    projections = ("query", "key", "value")
    for i in range(model.depth):
        block = [
            *layer_norm("ln1", "attention_norm"),
            row("attn.qkv_proj.weight", tuple(f"attention/{name}/kernel" for name in projections), qkv),
            row("attn.qkv_proj.bias", tuple(f"attention/{name}/bias" for name in projections), qkv_bias),
            *dense("attn.out_proj", "attention/out"),
            *layer_norm("ln2", "mlp_norm"),
            *dense("mlp.fc1", "mlp/up"),
            *dense("mlp.fc2", "mlp/down"),
        ]
        yield from under(f"blocks.{i}.", f"blocks_{i}/", block)
    yield from layer_norm("layer_norm", "norm")


def _text_rows(model: Decoder, names: Collection[str]) -> Iterator[Row]:
    """The language model; of a tied head its files hold one name, the head's, or both."""
    if model.tied:
        places = tuple(name for name in (HEAD, EMBED) if name in names) or (HEAD,)
        yield row(places, "embed/embedding", tied(len(places)))
    else:
        yield row(EMBED, "embed/embedding", same)
        yield from dense(HEAD.removesuffix(".weight"), "head", bias=False)
    if not names or FREQUENCIES in names:
        yield row(FREQUENCIES, (), _frequencies(model))
    for i in range(model.depth):
        block = [row(f"norm{n}.weight", f"{ours}_norm/scale", same) for n, ours in ((1, "attention"), (2, "mlp"))]
        for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out")):
            block += dense(f"attn.{theirs}", f"attention/{ours}", bias=False)
        for name in ("gate", "up", "down"):
            block += dense(f"mlp.{name}_proj", f"mlp/{name}", bias=False)
        yield from under(f"decoder.blocks.{i}.", f"blocks_{i}/", block)
    yield row("decoder.norm.weight", "norm/scale", same)


def _frequencies(model: Decoder) -> Transform:
    """The rotary positions' frequencies, a buffer of its files: read into nothing."""
    head = model.width // model.heads
    values = 1 / model.rope.base ** (np.arange(0, head, 2, dtype=np.float32) / np.float32(head))
    return Transform(read=lambda x: (), write=lambda: (values.astype(np.float32),))


def inputs(source: Json) -> Inputs:
    """One image, and one place of a text, where its own token stands."""
    size = source["vit_img_size"]
    place = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    image = jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.float32)
    return {"images": image, "text_tokens": place, "image_index": place}


def own_operations(source: Json) -> str:
    """Returns the operations that make its pixels, in [0, 1]: tiles if it has tokens for them. No file says them."""
    size, tokens = source["vit_img_size"], source["mp_image_token_length"]
    if "global_image_token" not in source["vlm_extra_tokens"]:
        return f"decode(3)|resize(({size}, {size}), 'bilinear')|normalize(0.0, 1.0)"
    tiles = f"tile_nanovlm({size}, {tokens}, {source['max_img_size']}, {bool(source['resize_to_max_side_len'])}"
    return f"decode(3)|{tiles}, field='image')|normalize(0.0, 1.0, field='images')"


def _rope(model: Decoder) -> Rope:
    """Returns nanoVLM's rotary positions, with the model's base and for its length, beyond which they shrink."""
    return Rope(model.rope.base, scaling=Scaling("dynamic_linear", 1.0, model.length))


VISION_FIELDS = {
    **anything("width", "depth", "heads", "mlp_width", "norm_eps", "dropout", "attention_dropout"),
    "image_size": lambda model: is_square(model.image_size),
    "patch_size": lambda model: is_square(model.patch_size),
    "activation": (ACTIVATION,),
    "pool": ("gap",),
}
TEXT_FIELDS = {
    **anything("width", "depth", "heads", "kv_heads", "mlp_width", "vocab_size", "length", "norm_eps", "tied"),
    **anything("dropout", "attention_dropout"),
    "rope": lambda model: model.rope == _rope(model) and model.rope.base % 1 == 0,
}
FAMILIES = {
    NAME: Family(
        "vlm",
        VLM,
        fields,
        rows,
        config,
        "nanovlm",
        inputs,
        recognises=recognises,
        own_operations=own_operations,
        plain_config=True,
        expressible=Expressible(
            "nanoVLM",
            VLM,
            {
                "image": Expressible("nanoVLM", ViT, VISION_FIELDS),
                "connector": Expressible("nanoVLM", PixelShuffle, anything("width", "factor")),
                "text": Expressible("nanoVLM", Decoder, TEXT_FIELDS),
                **anything("image_token"),
            },
        ),
    )
}

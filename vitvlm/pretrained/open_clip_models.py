"""Models of open_clip by their config, both ways: CLIP, CustomTextCLIP and CoCa. `open_clip_rows` has the tensors."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.coca import CoCa
from vitvlm.models.text import TextTransformer
from vitvlm.models.two_towers import TwoTowers
from vitvlm.models.vit import ViT
from vitvlm.nn.patches import as_pair
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.open_clip_rows import clip_rows, coca_rows

# The fields that we understand, with the defaults of CLIPVisionCfg, CLIPTextCfg and MultimodalCfg. Of others those of
# IDLE do not change what the model computes; any other one that is set is refused.
VISION = {
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
    "ls_init_value": None,
    "no_ln_pre": False,
    "pool_type": "tok",
    "final_ln_after_pool": False,
    "attentional_pool": False,
    "attn_pooler_queries": 256,
    "attn_pooler_heads": 8,
    "norm_kwargs": None,
}
TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
    "embed_cls": False,
    "pad_id": 0,
    "eos_id": 2,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_type": "linear",
    "norm_kwargs": None,
}
DECODER = {"width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4}
MODEL = {"embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg", "quick_gelu", "custom_text"} | {
    "init_logit_scale",
    "init_logit_bias",
}
IDLE = {
    "vision_cfg": {"patch_dropout", "output_tokens", "pos_embed_type"},
    "text_cfg": {"hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "output_tokens", "final_ln_after_pool"},
    "multimodal_cfg": {"context_length", "vocab_size", "dim_head", "n_queries", "attn_pooler_heads"},
}

EPS, SCALE = 1e-5, 1 / 0.07  # where a config says nothing
IMAGE_POOLS = {"tok": "cls", "avg": "gap"}
TEXT_POOLS = {"argmax": "eot", "eos": "eot", "last": "last"}
POOLINGS = {True: "joint", "parallel": "parallel", "cascade": "cascade", False: "none"}


def architecture(source: Json) -> str:
    """The class that open_clip makes from a model_cfg."""
    if source.get("multimodal_cfg"):
        return "CoCa"
    return "CustomTextCLIP" if source.get("custom_text") else "CLIP"


def clip_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("two_towers", ...)` from a model_cfg."""
    vision, text = _section(source, "vision_cfg", VISION), _section(source, "text_cfg", TEXT)
    if vision["attentional_pool"]:
        raise ConfigError("model_cfg.vision_cfg.attentional_pool: supported for CoCa only")
    pooled = vision["pool_type"] == "tok" or vision["final_ln_after_pool"]  # of CLS alone it makes no difference
    return _fields(source, {**_image_fields(vision, source), "norm_pooled": pooled}, text)


def coca_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("coca", ...)` from a model_cfg."""
    vision, text = _section(source, "vision_cfg", VISION), _section(source, "text_cfg", TEXT)
    decoder = _section(source, "multimodal_cfg", DECODER)
    if decoder["width"] != text["width"] or decoder["mlp_ratio"] != 4:
        raise ConfigError("model_cfg.multimodal_cfg: width is that of text_cfg, and mlp_ratio 4, in open_clip's CoCa")
    if vision["norm_kwargs"]:
        raise ConfigError("model_cfg.vision_cfg.norm_kwargs: not supported for CoCa")
    pooling = POOLINGS.get(vision["attentional_pool"])
    if pooling is None or (pooling == "joint" and vision["pool_type"] != "tok"):
        raise ConfigError(f"model_cfg.vision_cfg: attentional_pool {vision['attentional_pool']!r} is not understood")
    image = {**_image_fields(vision, source), "norm_pooled": pooling == "none" and vision["final_ln_after_pool"]}
    return _fields(source, image, text) | {
        "pooling": pooling,
        "queries": vision["attn_pooler_queries"],
        "pool_heads": vision["attn_pooler_heads"],
        "decoder_depth": decoder["layers"],
        "decoder_heads": decoder["heads"],
        "pad_id": text["pad_id"],
    }


def _fields(source: Json, image: Json, text: Json) -> dict[str, Any]:
    """Fields that CLIP and CoCa share."""
    _refuse(source, MODEL, "model_cfg")
    scale = source.get("init_logit_scale")
    return {
        "image": image,
        "text": _text_fields(text, source),
        "embed_dim": source["embed_dim"],
        "text_projection": text["proj_type"],
        "scale_init": SCALE if scale is None else math.exp(scale),
        "bias_init": source.get("init_logit_bias"),
        "scan": False,
    }


def _image_fields(vision: Json, source: Json) -> dict[str, Any]:
    size, patch = as_pair(vision["image_size"]), as_pair(vision["patch_size"])
    if vision["pool_type"] not in IMAGE_POOLS or not isinstance(vision["layers"], int):
        raise ConfigError(
            "model_cfg.vision_cfg: pool_type tok or avg of a ViT, whose layers are one number, is understood"
        )
    return {
        "name": "vit",
        "width": vision["width"],
        "depth": vision["layers"],
        "heads": vision["width"] // vision["head_width"],
        "mlp_width": int(vision["width"] * vision["mlp_ratio"]),
        "patch_size": tuple(patch),
        "image_size": tuple(size),
        "crop": any(side % p for side, p in zip(size, patch)),
        "patch_bias": False,
        "pool": IMAGE_POOLS[vision["pool_type"]],
        "cls_token": True,
        "pre_norm": not vision["no_ln_pre"],
        "layer_scale": vision["ls_init_value"],
        **_activation_and_norm(vision, source),
    }


def _text_fields(text: Json, source: Json) -> dict[str, Any]:
    if text["pool_type"] not in TEXT_POOLS:
        raise ConfigError(f"model_cfg.text_cfg.pool_type: {text['pool_type']!r} is not among {', '.join(TEXT_POOLS)}")
    if text["proj_type"] not in ("linear", "none"):
        raise ConfigError(f"model_cfg.text_cfg.proj_type: {text['proj_type']!r} is neither linear nor none")
    cls = text["embed_cls"]
    return {
        "name": "text",
        "width": text["width"],
        "depth": text["layers"],
        "heads": text["heads"],
        "mlp_width": int(text["width"] * text["mlp_ratio"]),
        "vocab_size": text["vocab_size"],
        "length": text["context_length"],
        "causal": not text["no_causal_mask"],
        "pool": "cls" if cls else TEXT_POOLS[text["pool_type"]],
        "eot_id": text["eos_id"] if text["pool_type"] == "eos" else None,
        "late_mask": cls,
        "norm_pooled": cls,
        **_activation_and_norm(text, source),
    }


def _activation_and_norm(section: Json, source: Json) -> dict[str, Any]:
    kwargs = section["norm_kwargs"] or {}
    if kwargs.keys() - {"eps"}:
        raise ConfigError(f"model_cfg: norm_kwargs {dict(kwargs)}; eps is understood")
    activation = "quick_gelu" if source.get("quick_gelu") else "gelu"
    return {"activation": activation, "norm_eps": kwargs.get("eps", EPS)}


def _section(source: Json, name: str, understood: Json) -> dict[str, Any]:
    """A part of a model_cfg, with what it leaves out. Raises ConfigError for fields that we do not understand."""
    _refuse(source[name], understood.keys() | IDLE[name], f"model_cfg.{name}")
    if source[name].get("pos_embed_type", "learnable") != "learnable":
        raise ConfigError(
            f"model_cfg.{name}.pos_embed_type: {source[name]['pos_embed_type']!r}; learnable is understood"
        )
    return {**understood, **source[name]}


def _refuse(given: Json, understood: Collection[str], where: str) -> None:
    for name, value in given.items():
        if value and name not in understood:
            raise ConfigError(f"{where}.{name}: {value!r} is not understood")


def clip_config(model: TwoTowers, params: Mapping[str, Any], custom: bool = False) -> dict[str, Any]:
    """The model_cfg of a CLIP, or of a CustomTextCLIP. Raises ConfigError for towers that do not go together."""
    config = _config(model, params)
    pooled = model.image.norm_pooled
    config["vision_cfg"]["final_ln_after_pool"] = pooled and model.image.pool == "gap"
    return config | ({"custom_text": True} if custom else {})


def coca_config(model: CoCa, params: Mapping[str, Any]) -> dict[str, Any]:
    """The model_cfg of a CoCa. Raises ConfigError for towers that do not go together."""
    if model.pooling == "joint" and model.image.pool != "cls":
        raise ConfigError(f"CoCa has no pool = {model.image.pool!r} of an image tower beside its own pooling")
    if model.pooling != "none" and model.image.norm_pooled:
        raise ConfigError("CoCa has no norm_pooled = True of an image tower whose tokens are pooled")
    config = _config(model, params)
    config["vision_cfg"] |= {
        "attentional_pool": next(theirs for theirs, ours in POOLINGS.items() if ours == model.pooling),
        "attn_pooler_queries": model.queries,
        "attn_pooler_heads": model.pool_heads,
        "final_ln_after_pool": model.image.norm_pooled,
        "output_tokens": True,
    }
    config["text_cfg"] |= {"pad_id": model.pad_id, "output_tokens": True}
    text = {name: config["text_cfg"][name] for name in ("context_length", "vocab_size", "width")}
    return config | {
        "multimodal_cfg": {**text, "heads": model.decoder_heads, "layers": model.decoder_depth},
        "custom_text": True,
    }


def _has_one_width(model: CoCa) -> bool:
    """Tells whether what is pooled, the text and the shared space are of one width, as in open_clip's CoCa."""
    width = model.embed_dim if model.pooling != "none" else model.image.width
    pooled_twice = model.pooling in ("parallel", "cascade")
    return width == model.text.width and (not pooled_twice or width == model.image.width)


def _config(model: TwoTowers, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_fields`."""
    image, text = model.image, model.text
    activation = image.activation
    if activation != text.activation or activation not in ("gelu", "quick_gelu"):
        raise ConfigError(f"open_clip has no towers with activations {activation!r} and {text.activation!r}")
    config = {
        "embed_dim": model.embed_dim,
        "quick_gelu": activation == "quick_gelu",
        "vision_cfg": _vision_config(image, params["image"]),
        "text_cfg": _text_config(text) | {"proj_type": model.text_projection},
    }
    if model.scale_init != SCALE:
        config["init_logit_scale"] = round(math.log(model.scale_init), 10)
    return config | ({} if model.bias_init is None else {"init_logit_bias": model.bias_init})


def _has_rest(model: ViT) -> bool:
    """Tells whether some pixels fill no whole patch."""
    return any(side % p for side, p in zip(as_pair(model.image_size), as_pair(model.patch_size)))


def _vision_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_image_fields`."""
    channels = params["patches"]["kernel"].shape[2]
    if channels != 3:
        raise ConfigError(f"open_clip has no images of {channels} channels")
    height, width = as_pair(model.image_size)
    p, q = as_pair(model.patch_size)
    return _block_config(model) | {
        "head_width": model.width // model.heads,
        "patch_size": p if p == q else [p, q],
        "image_size": height if height == width else [height, width],
        "ls_init_value": model.layer_scale,
        "no_ln_pre": not model.pre_norm,
        "pool_type": next(theirs for theirs, ours in IMAGE_POOLS.items() if ours == model.pool),
    }


def _text_config(model: TextTransformer) -> dict[str, Any]:
    """The inverse of `_text_fields`."""
    cls = model.pool == "cls"
    pool_type = {"last": "last", "eot": "argmax" if model.eot_id is None else "eos", "cls": "argmax"}[model.pool]
    end = {"eos_id": model.eot_id} if pool_type == "eos" else {}
    return _block_config(model) | {
        "context_length": model.length,
        "vocab_size": model.vocab_size,
        "heads": model.heads,
        "embed_cls": cls,
        "no_causal_mask": not model.causal,
        "pool_type": pool_type,
        **end,
    }


def _block_config(model: ViT | TextTransformer) -> dict[str, Any]:
    ratio = model.mlp_width / model.width
    norm = {} if model.norm_eps == EPS else {"norm_kwargs": {"eps": model.norm_eps}}
    return {"layers": model.depth, "width": model.width, "mlp_ratio": ratio, **norm}


def _has_ratio(model: ViT | TextTransformer) -> bool:
    """Tells whether the MLP's hidden width follows from a ratio to the width."""
    return int(model.width * (model.mlp_width / model.width)) == model.mlp_width


IMAGE_FIELDS = {
    **anything("width", "depth", "patch_size", "image_size", "pre_norm", "norm_pooled", "layer_scale", "norm_eps"),
    "heads": lambda model: model.width % model.heads == 0,
    "mlp_width": _has_ratio,
    "activation": ("gelu", "quick_gelu"),
    "pool": tuple(IMAGE_POOLS.values()),
    "cls_token": lambda model: model.has_cls,
    "patch_bias": (False,),
    # Pixels that fill no whole patch are left out; where there are none, it makes no difference.
    "crop": lambda model: model.crop or not _has_rest(model),
}
TEXT_FIELDS = {
    **anything("width", "depth", "heads", "vocab_size", "length", "causal", "norm_eps"),
    "mlp_width": _has_ratio,
    "activation": ("gelu", "quick_gelu"),
    "pool": ("last", "eot", "cls"),
    "eot_id": lambda model: model.eot_id is None or model.pool == "eot",
    "norm_pooled": lambda model: model.norm_pooled == (model.pool == "cls"),
    "late_mask": lambda model: model.late_mask == (model.pool == "cls"),
}
# Of CLS alone, a norm before pooling and one after it are the same; open_clip's has none that leaves it out.
POOLED_IMAGE = IMAGE_FIELDS | {"norm_pooled": lambda model: model.norm_pooled or model.pool != "cls"}
FIELDS = {
    "image": Expressible("CLIP", ViT, POOLED_IMAGE),
    "text": Expressible("CLIP", TextTransformer, TEXT_FIELDS | {"pool": ("last", "eot")}),
    **anything("embed_dim", "scale_init", "bias_init"),
}
CUSTOM_FIELDS = FIELDS | {
    "text": Expressible("CLIP", TextTransformer, TEXT_FIELDS),
    "text_projection": ("linear", "none"),
}
COCA_FIELDS = {
    "image": Expressible("CoCa", ViT, IMAGE_FIELDS | {"norm_eps": (EPS,)}),
    "text": Expressible("CoCa", TextTransformer, TEXT_FIELDS | {"causal": (True,)}),
    **anything("scale_init", "bias_init", "queries", "pool_heads", "decoder_depth", "decoder_heads"),
    "text_projection": ("linear", "none"),
    "embed_dim": _has_one_width,
    "pooling": tuple(POOLINGS.values()),
    "decoder_mlp_width": lambda model: model.decoder_mlp_width in (None, 4 * model.text.width),
    "norm_eps": (EPS,),
    "pad_id": lambda model: model.pad_id is not None,
}

FAMILIES = {
    "CLIP": Family(
        "two_towers",
        TwoTowers,
        clip_fields,
        clip_rows,
        clip_config,
        expressible=Expressible("CLIP", TwoTowers, FIELDS),
    ),
    "CustomTextCLIP": Family(
        "two_towers",
        TwoTowers,
        clip_fields,
        rows=lambda model, names: clip_rows(model, names, "text."),
        config=lambda model, params: clip_config(model, params, custom=True),
        expressible=Expressible("CLIP", TwoTowers, CUSTOM_FIELDS),
    ),
    "CoCa": Family(
        "coca", CoCa, coca_fields, coca_rows, coca_config, expressible=Expressible("CoCa", CoCa, COCA_FIELDS)
    ),
}

"""BLIP weights of Hugging Face `transformers`: BlipForConditionalGeneration, BlipForQuestionAnswering and
BlipForImageTextRetrieval."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from absl import logging

from vitvlm.core.config import ConfigError
from vitvlm.models.blip import BlipCaptioner, BlipRetrieval, BlipVQA
from vitvlm.models.blip_parts import BlipBase
from vitvlm.models.blip_text import CAUSAL, BlipText
from vitvlm.models.vit import ViT
from vitvlm.nn.patches import as_pair
from vitvlm.pretrained import bert, clip, texts
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Inputs, Json, image_inputs, text_inputs
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import conv, dense, layer_norm, positions, qkv, qkv_bias, same, temperature, token
from vitvlm.pretrained.vit import ACTIVATIONS

UNDERSTOOD = {"is_decoder": True, "tie_word_embeddings": True}
ENCODE = "encode_token_id"  # of ours in their config.json: [ENC], which their models do not put before texts
TEMPERATURE = "temp"  # of ours in their tensors, as the authors call it


def inputs(source: Json) -> Inputs:
    return image_inputs(source["vision_config"]["image_size"], 3) + text_inputs(3)


def _fields(source: Json) -> dict[str, Any]:
    """Fields that all three have in common, but for the ids."""
    if source["tie_word_embeddings"] is not True:
        raise ConfigError("config.json: tie_word_embeddings False; only True is understood")
    return {
        "image": {"name": "vit", **clip.image_fields(source["vision_config"])},
        "text": text_fields(source["text_config"]),
        "scan": False,
    }


def text_fields(source: Json) -> dict[str, Any]:
    """Fields of the text side. Its blocks look at the image in any case, as `transformers`' do with `is_decoder`."""
    for field, value in UNDERSTOOD.items():
        if source[field] != value:
            raise ConfigError(f"config.json: text_config.{field} {source[field]!r}; only {value!r} is understood")
    fields = bert.block_fields(source | {"type_vocab_size": 0})
    return {name: value for name, value in fields.items() if name != "segments"}


def _ids(source: Json) -> dict[str, int]:
    text = source["text_config"]
    return {"start_id": text["bos_token_id"], "stop_id": text["sep_token_id"]}


def captioner_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("blip_captioner", ...)` from the config.json of a BlipForConditionalGeneration."""
    return _fields(source) | _ids(source)


def vqa_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("blip_vqa", ...)` from the config.json of a BlipForQuestionAnswering.

    Raises ConfigError for a text as wide as no image: there its two sides do not fit together.
    """
    widths = [source[side]["hidden_size"] for side in ("vision_config", "text_config")]
    if len(set(widths)) > 1:
        raise ConfigError(
            f"config.json: hidden_size {widths[0]} of images and {widths[1]} of texts: there the answer looks at the "
            "question by matrices for the image's width, so both must be the same"
        )
    return _fields(source) | _ids(source) | {"encode_id": source.get(ENCODE)}


def retrieval_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("blip_retrieval", ...)` from the config.json of a BlipForImageTextRetrieval.

    A temperature is there if we wrote the weights: theirs compare by cosines.
    """
    return _fields(source) | {
        "embed_dim": source["image_text_hidden_size"],
        "scale_init": 1 / 0.07 if TEMPERATURE in names else None,
        "encode_id": source.get(ENCODE),
    }


def blip_config(architecture: str, model: BlipBase, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of what all three have in common."""
    text = bert.bert_config(model.text)
    text.pop("type_vocab_size")
    image = clip.block_config(model.image)
    return {
        "architectures": [architecture],
        "model_type": "blip",
        "vision_config": image
        | {"model_type": "blip_vision_model", "image_size": as_pair(model.image.image_size)[0]}
        | {"patch_size": as_pair(model.image.patch_size)[0]},
        "text_config": text
        | {"model_type": "blip_text_model", "is_decoder": True, "encoder_hidden_size": model.image.width},
    }


def captioner_config(model: BlipCaptioner, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `captioner_fields`."""
    return _with_ids(blip_config("BlipForConditionalGeneration", model, params), model)


def vqa_config(model: BlipVQA, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `vqa_fields`. Raises ConfigError for images and texts of different widths."""
    if model.image.width != model.text.width:
        raise ConfigError(f"BLIP's VQA has no image.width = {model.image.width} with text.width = {model.text.width}")
    return _with_ids(_with_encode(blip_config("BlipForQuestionAnswering", model, params), model), model)


def retrieval_config(model: BlipRetrieval, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `retrieval_fields`."""
    own = {"image_text_hidden_size": model.embed_dim}
    return _with_encode(blip_config("BlipForImageTextRetrieval", model, params), model) | own


def _with_ids(config: dict[str, Any], model: BlipCaptioner | BlipVQA) -> dict[str, Any]:
    ids = {"bos_token_id": model.start_id, "sep_token_id": model.stop_id}
    return config | {"text_config": config["text_config"] | ids}


def _with_encode(config: dict[str, Any], model: BlipVQA | BlipRetrieval) -> dict[str, Any]:
    """The config with the id of [ENC], of which `transformers` knows nothing: a warning says what to do there."""
    if model.encode_id is None:
        return config
    logging.warning(
        "format hf: `transformers` takes texts as they are: give it those that look at an image with the id %d in "
        "place of their first token, as model.encode_id does here",
        model.encode_id,
    )
    return config | {ENCODE: model.encode_id}


def image_rows(model: ViT) -> Iterator[Row]:
    """Rows of BLIP's image encoder."""
    yield row("embeddings.class_embedding", "cls", token)
    yield row("embeddings.patch_embedding.weight", "patches/kernel", conv)
    yield row("embeddings.patch_embedding.bias", "patches/bias", same)
    ours = tuple(f"positions/{name}" for name in (*model.placed, "grid"))
    yield row("embeddings.position_embedding", ours, positions(model.table_grid, model.placed))
    for i in range(model.depth):
        yield from under(f"encoder.layers.{i}.", f"blocks_{i}/", _block_rows())
    yield from layer_norm("post_layernorm", "norm")


def _block_rows() -> Iterator[Row]:
    yield from layer_norm("layer_norm1", "attention_norm")
    for theirs, ours, transform in (("weight", "kernel", qkv), ("bias", "bias", qkv_bias)):
        joined = tuple(f"attention/{name}/{ours}" for name in ("query", "key", "value"))
        yield row(f"self_attn.qkv.{theirs}", joined, transform)
    yield from dense("self_attn.projection", "attention/out")
    yield from layer_norm("layer_norm2", "mlp_norm")
    yield from clip.mlp_rows("mlp", "mlp")


def captioner_rows(model: BlipCaptioner, names: Collection[str]) -> Iterator[Row]:
    """Rows of a BlipForConditionalGeneration."""
    yield from under("vision_model.", "image/", image_rows(model.image))
    yield from under("", "text/", bert.head_rows(model.text, names, "text_decoder.", CAUSAL))


def vqa_rows(model: BlipVQA, names: Collection[str]) -> Iterator[Row]:
    """Rows of a BlipForQuestionAnswering."""
    yield from under("vision_model.", "image/", image_rows(model.image))
    yield from under("", "text/", bert.text_rows(model.text, "text_encoder."))
    yield from under("", "decoder/", bert.head_rows(model.text, names, "text_decoder.", CAUSAL))


def retrieval_rows(model: BlipRetrieval, names: Collection[str]) -> Iterator[Row]:
    """Rows of a BlipForImageTextRetrieval, and of the temperature if we learned one."""
    yield from under("vision_model.", "image/", image_rows(model.image))
    yield from under("", "text/", bert.text_rows(model.text, "text_encoder."))
    yield from dense("vision_proj", "project_image/out")
    yield from dense("text_proj", "project_text/out")
    yield from dense("itm_head", "match_head")
    if model.scale_init is not None:
        yield row(TEMPERATURE, "log_scale", temperature)


def rename(name: str) -> str | None:
    """Leaves out the poolers of old files, which nothing reads."""
    return None if ".pooler." in name else name


IMAGE_FIELDS = {name: values for name, values in clip.IMAGE_FIELDS.items() if name != "special_positions"}
TEXT_FIELDS = {
    **anything("width", "depth", "heads", "mlp_width", "vocab_size", "length", "norm_eps"),
    **anything("dropout", "attention_dropout"),
    "activation": tuple(ACTIVATIONS.values()),
}


def _family(
    name: str,
    kind: type[BlipBase],
    fields: Callable[..., dict[str, Any]],
    rows: Callable[..., Iterator[Row]],
    config: Callable[..., dict[str, Any]],
    own: Mapping[str, Any],
    **parts: tuple[bool, ...],
) -> Family:
    expressible = {
        "image": Expressible("BLIP", ViT, IMAGE_FIELDS),
        "text": Expressible("BLIP", BlipText, TEXT_FIELDS | parts),
        **own,
    }
    return Family(
        name,
        kind,
        fields,
        rows,
        config,
        "blip",
        inputs,
        rename=rename,
        texts=texts.bert,
        expressible=Expressible("BLIP", kind, expressible),
    )


ENCODES = {"encodes": (True,), "decodes": (False,)}
FAMILIES = {
    "BlipForConditionalGeneration": _family(
        "blip_captioner",
        BlipCaptioner,
        captioner_fields,
        captioner_rows,
        captioner_config,
        anything("start_id", "stop_id"),
        encodes=(False,),
        decodes=(True,),
    ),
    "BlipForQuestionAnswering": _family(
        "blip_vqa",
        BlipVQA,
        vqa_fields,
        vqa_rows,
        vqa_config,
        anything("start_id", "stop_id", "encode_id"),
        **ENCODES,
    ),
    "BlipForImageTextRetrieval": _family(
        "blip_retrieval",
        BlipRetrieval,
        retrieval_fields,
        retrieval_rows,
        retrieval_config,
        anything("embed_dim", "scale_init", "encode_id"),
        **ENCODES,
    ),
}

"""BLIP-2 weights of Hugging Face `transformers`: Blip2ForImageTextRetrieval, the first stage without its head that
writes, and Blip2ForConditionalGeneration, the second on OPT, LLaMA or T5; and InstructBlipForConditionalGeneration."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vitvlm.core.config import ConfigError, suggest
from vitvlm.models.blip2 import Blip2QFormer
from vitvlm.models.connectors.qformer import QFormerConnector
from vitvlm.models.qformer import QFormer
from vitvlm.models.vlm import VLM
from vitvlm.pretrained import blip_vision, llama, opt, t5, texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Inputs, Json, text_inputs
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, layer_norm, same, tokens
from vitvlm.pretrained.vit import ACTIVATIONS, activation, their_activation

START = 30_522  # [DEC], where a vocabulary has one token more than BERT's


def qformer_fields(source: Json, queries: int, reads: bool) -> dict[str, Any]:
    """Fields of a Q-Former from a qformer_config.

    Args:
      reads: whether it has MLPs for texts.
    """
    return {
        "queries": queries,
        "width": source["hidden_size"],
        "depth": source["num_hidden_layers"],
        "heads": source["num_attention_heads"],
        "mlp_width": source["intermediate_size"],
        "cross_every": source["cross_attention_frequency"],
        "vocab_size": source["vocab_size"] if reads else None,
        "length": source["max_position_embeddings"],
        "activation": activation(source),
        "norm_eps": source["layer_norm_eps"],
        "dropout": float(source["hidden_dropout_prob"]),
        "attention_dropout": float(source["attention_probs_dropout_prob"]),
    }


def qformer_config(model: QFormer, context_width: int) -> dict[str, Any]:
    """The inverse of `qformer_fields`; a Q-Former that reads no texts has the vocabulary of the class's default."""
    vocabulary = {} if model.vocab_size is None else {"vocab_size": model.vocab_size}
    return vocabulary | {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp_width,
        "cross_attention_frequency": model.cross_every,
        "max_position_embeddings": model.length,
        "hidden_act": their_activation(model.activation),
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "encoder_hidden_size": context_width,
    }


def qformer_rows(model: QFormer | QFormerConnector) -> Iterator[Row]:
    """The blocks of a Q-Former, without a prefix."""
    for i in range(model.depth):
        blocks = _block_rows(i % model.cross_every == 0, model.vocab_size is not None)
        yield from under(f"encoder.layer.{i}.", f"blocks_{i}/", blocks)


def _block_rows(looks: bool, reads: bool) -> Iterator[Row]:
    for theirs, ours in [("attention", "attention"), *[("crossattention", "cross")] * looks]:
        for name in ("query", "key", "value"):
            yield from dense(f"{theirs}.attention.{name}", f"{ours}/{name}")
        yield from dense(f"{theirs}.output.dense", f"{ours}/out")
        yield from layer_norm(f"{theirs}.output.LayerNorm", f"{ours}_norm")
    for suffix, ours in [("_query", "mlp"), *[("", "text_mlp")] * reads]:
        yield from dense(f"intermediate{suffix}.dense", f"{ours}/up")
        yield from dense(f"output{suffix}.dense", f"{ours}/down")
        yield from layer_norm(f"output{suffix}.LayerNorm", f"{ours}_norm")


def text_rows(theirs: str, ours: str) -> Iterator[Row]:
    """The tables of a Q-Former that reads texts."""
    yield row(f"{theirs}word_embeddings.weight", f"{ours}embed/embedding", same)
    yield row(f"{theirs}position_embeddings.weight", f"{ours}positions", same)


QFORMER_FIELDS = {
    **anything("queries", "width", "depth", "heads", "mlp_width", "cross_every", "length", "norm_eps"),
    **anything("dropout", "attention_dropout"),
    "activation": tuple(ACTIVATIONS.values()),
}


def retrieval_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("blip2_qformer", ...)` from the config.json of a Blip2ForImageTextRetrieval.

    Raises ConfigError for a Q-Former without MLPs for texts.
    """
    inside = source["qformer_config"]
    if not inside["use_qformer_text_input"]:
        raise ConfigError("qformer_config: use_qformer_text_input False; a Blip2ForImageTextRetrieval needs True")
    return {
        "image": {"name": "vit", **blip_vision.fields(source["vision_config"])},
        "qformer": qformer_fields(inside, source["num_query_tokens"], reads=True),
        "embed_dim": source["image_text_hidden_size"],
        "scale_init": None,
        "start_id": START if inside["vocab_size"] == START + 1 else None,
        "scan": False,
    }


def retrieval_config(model: Blip2QFormer, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `retrieval_fields`."""
    image = {"model_type": "blip_2_vision_model"} | blip_vision.config(model.image)
    inside = {"model_type": "blip_2_qformer", "use_qformer_text_input": True}
    return {
        "architectures": ["Blip2ForImageTextRetrieval"],
        "model_type": "blip-2",
        "vision_config": image,
        "qformer_config": inside | qformer_config(model.qformer, model.image.width),
        "num_query_tokens": model.qformer.queries,
        "image_text_hidden_size": model.embed_dim,
    }


def retrieval_rows(model: Blip2QFormer, names: Collection[str]) -> Iterator[Row]:
    """Rows of a Blip2ForImageTextRetrieval."""
    yield row("query_tokens", "qformer/query_tokens", tokens)
    yield from under("vision_model.", "image/", blip_vision.rows(model.image))
    yield from text_rows("embeddings.", "qformer/")
    yield from layer_norm("qformer.layernorm", "qformer/embed_norm")
    yield from under("qformer.", "qformer/", qformer_rows(model.qformer))
    yield from dense("vision_projection", "project_image")
    yield from dense("text_projection", "project_text")
    yield from dense("itm_head", "match_head")


def retrieval_inputs(source: Json) -> Inputs:
    return blip_vision.image_inputs(source["vision_config"]) + text_inputs(3)


RETRIEVAL = Family(
    "blip2_qformer",
    Blip2QFormer,
    fields=retrieval_fields,
    rows=retrieval_rows,
    config=retrieval_config,
    model_type="blip-2",
    inputs=retrieval_inputs,
    texts=texts.bert,
    expressible=Expressible(
        "Blip2ForImageTextRetrieval",
        Blip2QFormer,
        {
            "image": blip_vision.expressible("BLIP-2"),
            "qformer": Expressible(
                "BLIP-2", QFormer, QFORMER_FIELDS | {"vocab_size": lambda model: model.vocab_size is not None}
            ),
            **anything("embed_dim"),
            "scale_init": (None,),
            "start_id": lambda model: model.start_id == (START if model.qformer.vocab_size == START + 1 else None),
        },
    ),
)


# ------------------------------------------------------------------------------------------- the language models

LANGUAGE = "language_model."
# By the `model_type` of text_config.
LANGUAGE_MODELS: Mapping[str, Family] = {
    "opt": opt.FAMILY,
    "llama": llama.LLAMA,
    "t5": t5.T5_LM,
}


def writing_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vlm", ...)` from the config.json of a Blip2ForConditionalGeneration.

    Raises ConfigError for a Q-Former that reads texts, another language model, and no id for image tokens.
    """
    if source["qformer_config"]["use_qformer_text_input"]:
        raise ConfigError("qformer_config: use_qformer_text_input True; a Blip2ForConditionalGeneration reads no texts")
    return _vlm_fields(source, tensors, reads=False)


def instructed_fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """The same from that of an InstructBlipForConditionalGeneration, whose queries see the instruction."""
    return _vlm_fields(source, tensors, reads=True)


def _vlm_fields(source: Json, tensors: Tensors, reads: bool) -> dict[str, Any]:
    if source["image_token_index"] is None:
        raise ConfigError(
            "config.json: image_token_index None; image tokens stand at the places of an id: give it by keyword, "
            "image_token_index="
        )
    text = source["text_config"]
    if (kind := text["model_type"]) not in LANGUAGE_MODELS:
        raise ConfigError(f"text_config: model_type {kind!r}; {suggest(kind, LANGUAGE_MODELS)}")
    family = LANGUAGE_MODELS[kind]
    own = family.fields(text, tensors.under(LANGUAGE))
    qformer = qformer_fields(source["qformer_config"], source["num_query_tokens"], reads)
    return {
        "image": {"name": "vit", **blip_vision.fields(source["vision_config"])},
        "connector": {"name": "qformer", "query_width": qformer.pop("width"), **qformer},
        "text": {"name": family.model} | {name: value for name, value in own.items() if name != "scan"},
        "image_token": source["image_token_index"],
        "keep_prefix": True,
        "scan": False,
    }


def _vlm_config(model: VLM, architecture: str, kind: str) -> dict[str, Any]:
    """Entries that both have in common."""
    inside = model.connector
    qformer = QFormer(width=inside.query_width, **{name: getattr(inside, name) for name in OF_CONFIG})
    text = language_model(model.text).config(model.text, {})
    underscored = kind.replace("-", "_")
    return {
        "architectures": [architecture],
        "model_type": kind,
        "vision_config": {"model_type": f"{underscored}_vision_model"} | blip_vision.config(model.image),
        "qformer_config": {"model_type": f"{underscored}_qformer"} | qformer_config(qformer, model.image.width),
        "text_config": {name: value for name, value in text.items() if name != "architectures"},
        "num_query_tokens": inside.queries,
        "image_token_index": model.image_token,
    }


def writing_config(model: VLM, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `writing_fields`."""
    return _vlm_config(model, "Blip2ForConditionalGeneration", "blip-2")


def instructed_config(model: VLM, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `instructed_fields`."""
    return _vlm_config(model, "InstructBlipForConditionalGeneration", "instructblip")


def _vlm_rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of both, but for the norm before the Q-Former's blocks."""
    yield row("query_tokens", "connector/qformer/query_tokens", tokens)
    yield from under("vision_model.", "image/", blip_vision.rows(model.image))
    yield from under("qformer.", "connector/qformer/", qformer_rows(model.connector))
    yield from dense("language_projection", "connector/projection")
    own = {name.removeprefix(LANGUAGE) for name in names if name.startswith(LANGUAGE)}
    yield from under(LANGUAGE, "text/", language_model(model.text).rows(model.text, own))


def writing_rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of a Blip2ForConditionalGeneration."""
    yield from _vlm_rows(model, names)
    yield from layer_norm("qformer.layernorm", "connector/qformer/embed_norm")


def instructed_rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of an InstructBlipForConditionalGeneration."""
    yield from _vlm_rows(model, names)
    yield from text_rows("qformer.embeddings.", "connector/qformer/")
    yield from layer_norm("qformer.embeddings.layernorm", "connector/qformer/embed_norm")


def language_model(model: nn.Module) -> Family:
    """The family that can say most of a language model."""
    own = [family for family in LANGUAGE_MODELS.values() if family.kind is type(model)]
    return min(own, key=lambda family: len([*family.expressible.problems(model)]), default=opt.FAMILY)


def rename(name: str) -> str | None:
    """A tensor's name in the rows; None for those that the language models' families leave out."""
    if not name.startswith(LANGUAGE):
        return name
    own = name.removeprefix(LANGUAGE)
    return None if own == t5.IDLE or llama.without_buffers(own) is None else name


def vlm_inputs(source: Json) -> Inputs:
    image = blip_vision.image_inputs(source["vision_config"])[0]
    return jax.ShapeDtypeStruct((1, *image.shape), jnp.float32), *text_inputs(3)


def _is_expressible(model: VLM) -> bool:
    """Tells whether a text_config can say all that matters of the language model."""
    family = language_model(model.text)
    try:
        family.expressible.check(model.text)
    except ConfigError:
        return False
    return family.kind is type(model.text)


OF_CONFIG = ("queries", "cross_every", "vocab_size", "length", "depth", "heads", "mlp_width", "activation", "norm_eps")
OF_CONFIG += ("dropout", "attention_dropout")
CONNECTOR_FIELDS = {name: value for name, value in QFORMER_FIELDS.items() if name != "width"}
CONNECTOR_FIELDS |= anything("width", "query_width")


def _expressible(format: str, reads: bool) -> Expressible:
    vocabulary = {"vocab_size": lambda connector: (connector.vocab_size is not None) == reads}
    return Expressible(
        format,
        VLM,
        {
            "image": blip_vision.expressible(format),
            "connector": Expressible(format, QFormerConnector, CONNECTOR_FIELDS | vocabulary),
            "text": _is_expressible,
            "image_token": lambda model: model.image_token is not None and model.image_token >= 0,
            "keep_prefix": (True,),
        },
    )


def _family(model_type: str, fields: Any, rows: Any, config: Any, format: str, reads: bool) -> Family:
    return Family(
        "vlm",
        VLM,
        fields,
        rows,
        config,
        model_type,
        vlm_inputs,
        rename=rename,
        texts=texts.t5,
        expressible=_expressible(format, reads),
    )


FAMILIES = {
    "Blip2ForImageTextRetrieval": RETRIEVAL,
    "Blip2ForConditionalGeneration": _family(
        "blip-2", writing_fields, writing_rows, writing_config, "BLIP-2", reads=False
    ),
    "InstructBlipForConditionalGeneration": _family(
        "instructblip", instructed_fields, instructed_rows, instructed_config, "InstructBLIP", reads=True
    ),
}

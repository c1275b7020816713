"""BLIP-2 weights of Hugging Face `transformers`: Blip2ForImageTextRetrieval, the first stage without its head that
writes."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.blip2 import Blip2QFormer
from vitvlm.models.qformer import QFormer
from vitvlm.pretrained import blip_vision, texts
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


def qformer_rows(model: QFormer) -> Iterator[Row]:
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

FAMILIES = {"Blip2ForImageTextRetrieval": RETRIEVAL}

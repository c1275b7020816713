"""BERT weights of Hugging Face `transformers`: BertModel, BertForMaskedLM, of BertForPreTraining all but the head that
says whether two sentences follow each other, and the decoder BertLMHeadModel, with cross-attention or without. How an
encoder's tokens are pooled, `sentences` may say besides."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.bert import Bert, BertBlocks, BertDecoder
from vitvlm.pretrained import sentences, texts
from vitvlm.pretrained.clip import described_texts
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, layer_norm, same, tied
from vitvlm.pretrained.vit import ACTIVATIONS, activation, their_activation, without

# What their code can do besides, and ours can not: the only value that is understood.
UNDERSTOOD = {"position_embedding_type": "absolute", "tie_word_embeddings": True}
OF_ENCODERS = UNDERSTOOD | {"is_decoder": False, "add_cross_attention": False}
DECODER = "cls.predictions.decoder"  # of the head: the table of tokens, and a bias, that old files hold twice


def bert_fields(source: Json, names: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Fields of `models.build("bert", ...)` from the config.json of a BertModel.

    Its pooled vector is the pooler's if that was saved, else the first token. Raises ConfigError for a decoder, or
    positions of another kind.
    """
    _check(source, OF_ENCODERS)
    pooler = f"{prefix}pooler.dense.weight" in names
    return block_fields(source) | {"pool": "cls" if pooler else "first", "pooler": pooler}


def _check(source: Json, understood: Json) -> None:
    for field, value in understood.items():
        if source.get(field, value) != value:
            raise ConfigError(f"config.json: {field} {source[field]!r}; only {value!r} is understood")


def block_fields(source: Json) -> dict[str, Any]:
    """The fields that an encoder and a decoder have in common."""
    return {
        "width": source["hidden_size"],
        "depth": source["num_hidden_layers"],
        "heads": source["num_attention_heads"],
        "mlp_width": source["intermediate_size"],
        "vocab_size": source["vocab_size"],
        "length": source["max_position_embeddings"],
        "segments": source["type_vocab_size"],
        "activation": activation(source),
        "norm_eps": source["layer_norm_eps"],
        "dropout": source["hidden_dropout_prob"],
        "attention_dropout": source["attention_probs_dropout_prob"],
    }


def masked_lm_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """The same from that of a BertForMaskedLM, with its head."""
    return bert_fields(source, names, "bert.") | {"mlm_head": True, "scan": False}


def decoder_fields(source: Json, names: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("bert_decoder", ...)` from the config.json of a BertLMHeadModel.

    Raises ConfigError for one that looks both ways, which `architectures="BertForMaskedLM"` reads.
    """
    _check(source, UNDERSTOOD)
    if not source.get("is_decoder", False):
        raise ConfigError(
            "config.json: is_decoder False, so this BertLMHeadModel looks both ways; only True is understood; "
            'architectures="BertForMaskedLM" reads it as that'
        )
    context = source["hidden_size"] if source.get("add_cross_attention", False) else None
    return block_fields(source) | {"context_width": context, "scan": False}


def model_config(model: Bert) -> dict[str, Any]:
    """The config.json of a BertModel, or with a head of a BertForMaskedLM."""
    kind = "BertForMaskedLM" if model.mlm_head else "BertModel"
    return {"architectures": [kind], "model_type": "bert"} | bert_config(model)


def decoder_config(model: BertDecoder) -> dict[str, Any]:
    """The inverse of `decoder_fields`."""
    kind = {"architectures": ["BertLMHeadModel"], "model_type": "bert", "is_decoder": True}
    return kind | {"add_cross_attention": model.context_width is not None} | bert_config(model)


def bert_config(model: BertBlocks) -> dict[str, Any]:
    """The inverse of `block_fields`."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.mlp_width,
        "hidden_act": their_activation(model.activation),
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "max_position_embeddings": model.length,
        "type_vocab_size": model.segments,
        "layer_norm_eps": model.norm_eps,
    }


def model_rows(model: Bert, names: Collection[str]) -> Iterator[Row]:
    """Rows of a BertModel, or with a head of a BertForMaskedLM."""
    if not model.mlm_head:
        yield from bert_rows(model)
        return
    yield from head_rows(model, names)
    if model.has_pooler:
        yield from dense("bert.pooler.dense", "pooler")


def bert_rows(model: Bert, prefix: str = "") -> Iterator[Row]:
    """Rows of a BertModel; their names begin with the prefix."""
    yield from text_rows(model, prefix)
    if model.has_pooler:
        yield from dense(f"{prefix}pooler.dense", "pooler")


def head_rows(
    model: BertBlocks, names: Collection[str], prefix: str = "", attention: str = "attention"
) -> Iterator[Row]:
    """Rows of embeddings and blocks under "bert.", and of the head that gives logits of tokens; see `text_rows`."""
    decoder = f"{prefix}{DECODER}"
    twice = [f"{decoder}.weight"] if f"{decoder}.weight" in names else []
    yield from text_rows(model, f"{prefix}bert.", twice, attention)
    yield from dense(f"{prefix}cls.predictions.transform.dense", "mlm_dense")
    yield from layer_norm(f"{prefix}cls.predictions.transform.LayerNorm", "mlm_norm")
    bias = [f"{prefix}cls.predictions.bias", *([f"{decoder}.bias"] if f"{decoder}.bias" in names else [])]
    yield row(tuple(bias), "mlm_bias", tied(len(bias)))


def text_rows(model: BertBlocks, prefix: str, twice: Sequence[str] = (), attention: str = "attention") -> Iterator[Row]:
    """Rows of embeddings and blocks.

    Args:
      twice: names under which the table of tokens is held too.
      attention: our name of the self-attention.
    """
    embeddings = (f"{prefix}embeddings.word_embeddings.weight", *twice)
    yield row(embeddings, "embed/embedding", tied(len(embeddings)))
    yield row(f"{prefix}embeddings.position_embeddings.weight", "positions", same)
    if model.segments:
        yield row(f"{prefix}embeddings.token_type_embeddings.weight", "segments", same)
    yield from layer_norm(f"{prefix}embeddings.LayerNorm", "embed_norm")
    for i in range(model.depth):
        yield from under(f"{prefix}encoder.layer.{i}.", f"blocks_{i}/", _block_rows(model.looks, attention))


def _block_rows(cross: bool, attention: str) -> Iterator[Row]:
    for theirs, ours in [("attention", attention), *[("crossattention", "cross")] * cross]:
        for name in ("query", "key", "value"):
            yield from dense(f"{theirs}.self.{name}", f"{ours}/{name}")
        yield from dense(f"{theirs}.output.dense", f"{ours}/out")
        yield from layer_norm(f"{theirs}.output.LayerNorm", f"{ours}_norm")
    yield from dense("intermediate.dense", "mlp/up")
    yield from dense("output.dense", "mlp/down")
    yield from layer_norm("output.LayerNorm", "mlp_norm")


def _norm_name(found: re.Match[str]) -> str:
    return "LayerNorm." + {"gamma": "weight", "beta": "bias"}[found[1]]


def renaming(prefix: str, *left_out: str) -> Callable[[str], str | None]:
    """`Family.rename` of files from TensorFlow's time, whose norms have a gamma and a beta; see `vit.without`."""
    rename = without(prefix, *left_out)
    return lambda name: rename(re.sub(r"LayerNorm\.(gamma|beta)$", _norm_name, name))


ENCODER_FIELDS = {
    **anything("width", "depth", "heads", "mlp_width", "vocab_size", "length", "segments", "norm_eps"),
    **anything("dropout", "attention_dropout"),
    "activation": tuple(ACTIVATIONS.values()),
}
ENCODER = Family(
    "bert",
    Bert,
    fields=lambda source, names: bert_fields(source, names) | {"scan": False},
    rows=model_rows,
    config=lambda model, params: model_config(model),
    model_type="bert",
    inputs=described_texts,
    rename=renaming("bert.", "cls."),
    texts=texts.bert,
    read_beside=lambda folder, fields: {} if "pool" in fields else sentences.fields(folder),
    write_beside=sentences.write,
    expressible=Expressible("BERT", Bert, ENCODER_FIELDS | anything("pool", "pooler", "mlm_head")),
)
MASKED_LM = dataclasses.replace(ENCODER, fields=masked_lm_fields, rename=renaming("", "cls.seq_relationship."))

DECODER_LM = Family(
    "bert_decoder",
    BertDecoder,
    fields=decoder_fields,
    rows=head_rows,
    config=lambda model, params: decoder_config(model),
    model_type="bert",
    inputs=described_texts,
    rename=renaming("", "cls.seq_relationship.", "bert.pooler."),
    texts=texts.bert,
    expressible=Expressible(
        "BERT as a decoder",
        BertDecoder,
        ENCODER_FIELDS | {"context_width": lambda model: model.context_width in (None, model.width)},
    ),
)

FAMILIES = {
    "BertModel": ENCODER,
    "BertForMaskedLM": MASKED_LM,
    "BertForPreTraining": MASKED_LM,
    "BertLMHeadModel": DECODER_LM,
}

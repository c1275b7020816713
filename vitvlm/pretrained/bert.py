"""BERT weights of Hugging Face `transformers`: BertModel. How its tokens are pooled, `sentences` may say besides."""

from collections.abc import Collection, Iterator
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.bert import Bert
from vitvlm.pretrained import sentences, texts
from vitvlm.pretrained.families import Family, Inputs, Json, check_expressible, text_inputs
from vitvlm.pretrained.tables import Row, row, under
from vitvlm.pretrained.transforms import dense, layer_norm, same
from vitvlm.pretrained.vit import activation, their_activation

# What a config.json that does not say means: the defaults of BertConfig (BERT-base), and of AlignTextConfig.
DEFAULTS = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
# What their code can do besides, and ours can not: the only value that is understood.
UNDERSTOOD = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def bert_fields(source: Json, names: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Fields of `models.build("bert", ...)` from the config.json of a BertModel.

    Its pooled vector is the pooler's if that was saved, else the first token. Raises ConfigError for a decoder, or
    positions of another kind.
    """
    source = DEFAULTS | source
    for field, value in UNDERSTOOD.items():
        if source.get(field, value) != value:
            raise ConfigError(f"config.json: {field} {source[field]!r}; only {value!r} is understood")
    pooler = f"{prefix}pooler.dense.weight" in names
    return {
        "width": source["hidden_size"],
        "depth": source["num_hidden_layers"],
        "heads": source["num_attention_heads"],
        "mlp_width": source["intermediate_size"],
        "vocab_size": source["vocab_size"],
        "length": source["max_position_embeddings"],
        "segments": source["type_vocab_size"],
        "pool": "cls" if pooler else "first",
        "pooler": pooler,
        "activation": activation(source),
        "norm_eps": source["layer_norm_eps"],
        "dropout": source["hidden_dropout_prob"],
        "attention_dropout": source["attention_probs_dropout_prob"],
    }


def bert_config(model: Bert) -> dict[str, Any]:
    """The inverse of `bert_fields`; the pooling is no part of it."""
    check_expressible({"drop_path": not model.drop_path}, model, "BERT")
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


def bert_rows(model: Bert, names: Collection[str], prefix: str = "") -> Iterator[Row]:
    """A BertModel; their names begin with the prefix."""
    yield row(f"{prefix}embeddings.word_embeddings.weight", "embed/embedding", same)
    yield row(f"{prefix}embeddings.position_embeddings.weight", "positions", same)
    yield row(f"{prefix}embeddings.token_type_embeddings.weight", "segments", same)
    yield from layer_norm(f"{prefix}embeddings.LayerNorm", "embed_norm")
    for i in range(model.depth):
        yield from under(f"{prefix}encoder.layer.{i}.", f"blocks_{i}/", _block_rows())
    if model.has_pooler:
        yield from dense(f"{prefix}pooler.dense", "pooler")


def _block_rows() -> Iterator[Row]:
    for name in ("query", "key", "value"):
        yield from dense(f"attention.self.{name}", f"attention/{name}")
    yield from dense("attention.output.dense", "attention/out")
    yield from layer_norm("attention.output.LayerNorm", "attention_norm")
    yield from dense("intermediate.dense", "mlp/up")
    yield from dense("output.dense", "mlp/down")
    yield from layer_norm("output.LayerNorm", "mlp_norm")


def bert_inputs(source: Json) -> Inputs:
    return text_inputs((DEFAULTS | source)["max_position_embeddings"])


FAMILIES = {
    "BertModel": Family(
        "bert",
        Bert,
        fields=lambda source, names: bert_fields(source, names) | {"scan": False},
        rows=bert_rows,
        config=lambda model, params: {"architectures": ["BertModel"], "model_type": "bert"} | bert_config(model),
        inputs=bert_inputs,
        texts=texts.fast,
        read_beside=lambda folder, fields: {} if "pool" in fields else sentences.fields(folder),
        write_beside=sentences.write,
    )
}

"""LLaVA weights of Hugging Face `transformers`: LlavaForConditionalGeneration, such as LLaVA 1.5's."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.models.connectors.projector import MLP
from vitvlm.models.vlm import VLM
from vitvlm.nn.patches import as_pair
from vitvlm.pretrained import parts, texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.paligemma import MOVE, RENAME
from vitvlm.pretrained.tables import Row, under
from vitvlm.pretrained.transforms import dense
from vitvlm.pretrained.vit import ACTIVATIONS, activation, their_activation


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vlm", ...)` from the config.json of a LlavaForConditionalGeneration.

    Raises ConfigError for features that leave out CLS of an encoder without it: they would leave out a patch.
    """
    image, layers = source["vision_config"], source["vision_feature_layer"]
    encoder = parts.image_encoder(image).fields(image)
    keeps, has_cls = source["vision_feature_select_strategy"] == "full", encoder["pool"] == "cls"
    if not keeps and not has_cls:
        raise ConfigError(
            'config.json: vision_feature_select_strategy "default" leaves out CLS, and the encoder has none: "full"'
        )
    text = {**source["text_config"], "tie_word_embeddings": source["tie_word_embeddings"]}
    return {
        "image": encoder,
        "connector": {
            "name": "mlp",
            "activation": activation(source, "projector_hidden_act"),
            "bias": source["multimodal_projector_bias"],
        },
        "text": parts.language_fields(text, tensors, MOVE),
        "image_token": source["image_token_index"],
        "features": (layers,) if isinstance(layers, int) else tuple(layers),
        "keep_prefix": keeps and has_cls,
        "scan": False,
    }


def config(model: VLM, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `fields`."""
    layers, leaves_out = model.features, model.image.has_cls and not model.keep_prefix
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "vision_config": parts.encoder_of(model.image).config(model.image, params["image"]),
        "text_config": parts.language_config(model.text, params["text"]),
        "image_token_index": model.image_token,
        "image_seq_length": model.connector.count(model.image.table_grid) + model.keep_prefix,
        "projector_hidden_act": their_activation(model.connector.activation),
        "multimodal_projector_bias": model.connector.bias,
        "vision_feature_layer": layers[0] if len(layers) == 1 else list(layers),
        "vision_feature_select_strategy": "default" if leaves_out else "full",
        "tie_word_embeddings": model.text.tied,
    }


def rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of a LlavaForConditionalGeneration."""
    yield from under("vision_tower.", "image/", parts.encoder_of(model.image).rows(model.image))
    for i in range(2):
        yield from dense(f"multi_modal_projector.linear_{i + 1}", f"connector/layers_{i}", model.connector.bias)
    yield from parts.language_rows(model.text, names, MOVE)


def write_beside(model: VLM, folder: Path, processor: str = "LlavaProcessor") -> None:
    """Writes of what tokens an image's number follows."""
    has_cls = model.image.has_cls
    parts.write_processor(
        folder,
        processor,
        patch_size=as_pair(model.image.patch_size)[0],
        vision_feature_select_strategy="default" if has_cls and not model.keep_prefix else "full",
        num_additional_image_tokens=int(has_cls),
    )


CONNECTOR = {"activation": tuple(ACTIVATIONS.values()), **anything("width", "bias")}
EXPRESSED = {
    "image": parts.ANY_ENCODER,
    "connector": Expressible("LLaVA", MLP, CONNECTOR),
    "text": parts.ANY_LANGUAGE,
    "image_token": lambda model: model.image_token is not None,
    "features": lambda model: all(isinstance(each, int) for each in model.features),
}
FAMILIES = {
    "LlavaForConditionalGeneration": Family(
        "vlm",
        VLM,
        fields,
        rows,
        config,
        "llava",
        parts.described,
        rename=RENAME,
        top="model",
        texts=texts.fast,
        write_beside=write_beside,
        expressible=Expressible("LLaVA", VLM, EXPRESSED | anything("keep_prefix")),
    )
}

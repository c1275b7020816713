"""PaliGemma weights of Hugging Face `transformers`, 1 and 2: PaliGemmaForConditionalGeneration."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.models.connectors.projector import Linear
from vitvlm.models.vit import ViT
from vitvlm.models.vlm import VLM
from vitvlm.pretrained import clip, gemma, parts, texts
from vitvlm.pretrained.entries import Tensors
from vitvlm.pretrained.expressible import Expressible, OneOf, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, under
from vitvlm.pretrained.transforms import dense

MOVE = parts.moved(("", "language_model."))
# Of versions before and after: the encoder inside another module, and what is in memory.
RENAME = parts.renamed(
    ("vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("model.image_newline", "image_newline"),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)


def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vlm", ...)` from the config.json of a PaliGemmaForConditionalGeneration.

    Its Gemma is said to look both ways, which it does in the prompt alone.
    """
    text = {**source["text_config"], "tie_word_embeddings": source["tie_word_embeddings"]}
    text["use_bidirectional_attention"] = None
    image = source["vision_config"]
    return {
        "image": parts.image_encoder(image).fields(image),
        "connector": {"name": "linear"},
        "text": parts.language_fields(text, tensors, MOVE),
        "image_token": source["image_token_index"],
        "prefix_lm": True,
        "scan": False,
    }


def config(model: VLM, params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `fields`."""
    width = model.text.width
    image = parts.encoder_of(model.image).config(model.image, params["image"])
    text = parts.language_config(model.text, params["text"])
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "vision_config": image | {"projection_dim": width},
        "text_config": text | {"use_bidirectional_attention": True},
        "image_token_index": model.image_token,
        "hidden_size": width,
        "projection_dim": width,
        "tie_word_embeddings": model.text.tied,
    }


def rows(model: VLM, names: Collection[str]) -> Iterator[Row]:
    """Rows of a PaliGemmaForConditionalGeneration."""
    yield from under("vision_tower.", "image/", parts.encoder_of(model.image).rows(model.image))
    yield from dense("multi_modal_projector.linear", "connector/layers_0")
    yield from parts.language_rows(model.text, names, MOVE)


GEMMAS = OneOf.of(gemma.GEMMA.expressible, gemma.GEMMA2.expressible)
FAMILIES = {
    "PaliGemmaForConditionalGeneration": Family(
        "vlm",
        VLM,
        fields,
        rows,
        config,
        "paligemma",
        parts.described,
        rename=RENAME,
        top="model",
        texts=texts.fast,
        expressible=Expressible(
            "PaliGemma",
            VLM,
            {
                "image": Expressible("SigLIP", ViT, clip.IMAGE_FIELDS | {"pool": ("map", "gap")}),
                "connector": Expressible("PaliGemma", Linear, anything("width")),
                "text": GEMMAS,
                "image_token": lambda model: model.image_token is not None,
                "prefix_lm": (True,),
            },
        ),
    )
}

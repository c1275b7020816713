"""DeiT weights of Hugging Face `transformers`: DeiTForImageClassificationWithTeacher, with its two heads,
DeiTForImageClassification, whose distillation token has none, and DeiTModel."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.models.vit import ViT
from vitvlm.pretrained.expressible import Expressible, anything
from vitvlm.pretrained.families import Family, Json
from vitvlm.pretrained.tables import Row, under
from vitvlm.pretrained.transforms import dense
from vitvlm.pretrained.vit import POOLED, encoder_only_fields, encoder_rows, pooled_config, vit_fields, without

TEACHER = "distillation_classifier.weight"


def deit_fields(source: Json, tensors: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("deit", ...)` from the config.json of a DeiT with classes."""
    return vit_fields(source, tensors) | {"distillation_head": TEACHER in tensors}


def deit_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a DeiT with two heads or one, or without classes."""
    heads = "DeiTForImageClassification" + "WithTeacher" * model.distillation_head
    return pooled_config(model, params) | {
        "architectures": [heads if model.num_classes else "DeiTModel"],
        "model_type": "deit",
    }


def deit_rows(model: ViT, names: Collection[str]) -> Iterator[Row]:
    """Rows of all three DeiT classes."""
    yield from under("deit." if model.num_classes else "", "", encoder_rows(model))
    if model.representation_size:
        yield from dense("pooler.dense", "representation")
    if model.num_classes and model.distillation_head:
        yield from dense("cls_classifier", "head")
        yield from dense("distillation_classifier", "distillation_head")
    elif model.num_classes:
        yield from dense("classifier", "head")


FIELDS = POOLED | anything("distillation_head") | {"distillation": (True,)}
DEIT = Family("deit", ViT, deit_fields, deit_rows, deit_config, "deit", expressible=Expressible("DeiT", ViT, FIELDS))

FAMILIES = {
    "DeiTForImageClassificationWithTeacher": DEIT,
    "DeiTForImageClassification": DEIT,
    "DeiTModel": dataclasses.replace(DEIT, fields=encoder_only_fields, rename=without("deit.")),
}

"""DeiT weights of Hugging Face `transformers`: DeiTForImageClassificationWithTeacher, with its two heads,
DeiTForImageClassification, whose distillation token has none, and DeiTModel."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vitvlm.models.vit import ViT
from vitvlm.pretrained.families import Family, Json, check_expressible
from vitvlm.pretrained.tables import Row, under
from vitvlm.pretrained.transforms import dense
from vitvlm.pretrained.vit import encoder_only_fields, encoder_rows, pooled_config, vit_fields, without

TEACHER = "distillation_classifier.weight"


def deit_fields(source: Json, tensors: Collection[str]) -> dict[str, Any]:
    """Fields of `models.build("deit", ...)` from the config.json of a DeiT with classes."""
    return vit_fields(source, tensors) | {"distillation_head": TEACHER in tensors}


def deit_config(model: ViT, params: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a DeiT with two heads or one, or without classes."""
    check_expressible({"distillation": model.distillation}, model, "DeiT")
    heads = "DeiTForImageClassification" + "WithTeacher" * model.distillation_head
    return pooled_config(model, params, "DeiT") | {
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


DEIT = Family("deit", ViT, deit_fields, deit_rows, deit_config, "deit")

FAMILIES = {
    "DeiTForImageClassificationWithTeacher": DEIT,
    "DeiTForImageClassification": DEIT,
    "DeiTModel": Family("deit", ViT, encoder_only_fields, deit_rows, deit_config, "deit", rename=without("deit.")),
}

"""DeiT: a ViT with a distillation token beside CLS, and a head on each (Touvron et al. 2021, section 3 and table 1)."""

from typing import Any

from vitvlm.core import config
from vitvlm.models.registry import MODELS, module_fields
from vitvlm.models.vit import ViT, variant_fields


@MODELS.register("deit")
def build_deit(variant: str | None = None, **fields: Any) -> ViT:
    """A distilled DeiT from a variant ("Ti/16", "S/16", "B/16") or explicit sizes: fields of `ViT`.

    `logits` is the mean of the two heads' and is what it predicts; task classify teaches one head the labels
    (`cls_logits`) and the other the answers of a teacher (`distillation_logits`). pool, cls_token and distillation
    are not fields. The paper's DeiT without a distillation token is a "vit".
    """
    fixed = {"pool": "cls", "cls_token": True, "distillation": True}
    config.check_names(fields, ["variant", *(name for name in module_fields(ViT) if name not in fixed)], "model")
    return config.call(ViT, variant_fields(variant) | fields, "model", **fixed)

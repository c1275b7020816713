"""The models that configs call by name.

Fields of their builders:
  variant: a published size by its name, such as "B/16"; other fields change it. None: all sizes are given.
  image, text: a section of name and fields for the part that reads images or texts, such as `{"name": "vit", "variant":
    "B/16"}`; with a variant, what changes in it.
  backbone: a section of name and fields for the image encoder inside.
  connector: a section of name and fields for what brings images to the language model, such as `{"name": "mlp"}`.
  qformer: a section of fields for the querying transformer; with a variant, what changes in it.
  features: which tokens of the image encoder the connector reads: "tokens", or layers such as -2; several are joined.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from flax import linen as nn

from vitvlm.core.config import ConfigError, suggest
from vitvlm.core.registry import Registry

MODELS = Registry("model")


def module_fields(module: type[nn.Module]) -> list[str]:
    """Names of a module's own fields, without the two that Flax adds."""
    return [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]


def named_variant(variants: Mapping[str, Mapping[str, Any]], variant: str | None) -> dict[str, Any]:
    """The fields of a published size; none without a name. Raises ConfigError for an unknown name."""
    if variant is None:
        return {}
    if variant not in variants:
        raise ConfigError(f"model.variant: no variant {variant!r}; {suggest(variant, variants)}")
    return dict(variants[variant])


def build_backbone(backbone: Mapping[str, Any], where: str = "model.backbone") -> nn.Module:
    """The encoder inside another model, by its `name` and fields. Raises ConfigError for an unknown name or field.

    Args:
      where: its name in the config, for error messages.
    """
    if "name" not in backbone:
        raise ConfigError(f"{where}.name: missing; there is: {', '.join(MODELS.names())}")
    fields = {name: value for name, value in backbone.items() if name != "name"}
    return MODELS.build(backbone["name"], fields, where)


def sharing(module: nn.Module, described: Collection[str], shared: Mapping[str, Any]) -> nn.Module:
    """Returns a part of a model with the fields that all parts share, where what describes it does not say otherwise.

    Args:
      described: names of the fields that the part's own description gives.
    """
    unsaid = set(module_fields(type(module))) - set(described)
    return module.clone(**{name: value for name, value in shared.items() if name in unsaid})

"""The models that configs call by name."""

import dataclasses

from flax import linen as nn

from vitvlm.core.registry import Registry

MODELS = Registry("model")


def module_fields(module: type[nn.Module]) -> list[str]:
    """Names of a module's own fields, without the two that Flax adds."""
    return [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]

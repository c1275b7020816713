"""Architectures, called by name: `build("vit", variant="B/16", num_classes=1000)`."""

from typing import Any

from flax import linen as nn

from vitvlm.models import bert as bert  # each architecture registers itself
from vitvlm.models import blip as blip
from vitvlm.models import blip2 as blip2
from vitvlm.models import coca as coca
from vitvlm.models import decoder as decoder
from vitvlm.models import deit as deit
from vitvlm.models import efficientnet as efficientnet
from vitvlm.models import fpn as fpn
from vitvlm.models import mae as mae
from vitvlm.models import multiscale as multiscale
from vitvlm.models import naflex as naflex
from vitvlm.models import qwen_vit as qwen_vit
from vitvlm.models import resnet as resnet
from vitvlm.models import swin as swin
from vitvlm.models import t5 as t5
from vitvlm.models import text as text
from vitvlm.models import two_towers as two_towers
from vitvlm.models import vit as vit
from vitvlm.models import vlm_build as vlm_build
from vitvlm.models.registry import MODELS


def build(name: str, **fields: Any) -> nn.Module:
    """The model of that name. Raises ConfigError for an unknown name or field, and names the nearest."""
    return MODELS.build(name, fields, "model")


def names() -> list[str]:
    """Names that `build` takes."""
    return MODELS.names()

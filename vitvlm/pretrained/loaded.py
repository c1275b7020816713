"""What loading gives, whatever the format."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its weights and how its inputs are made: `loaded.model.apply(loaded.variables, images)`.

    Fields:
      model: a Flax module; layers in a loop (`scan=False`) unless asked otherwise.
      variables: {"params": …} and, with batch norm, {"batch_stats": …}, in the dtypes of the source.
      preprocessing: an operation string, for `data.operations.parse`; None if the source does not say.
      tokenizer: None for image models.
      source: where it came from: "path", "format", "model" (its name and fields, as a config's), and the source's own
        configs.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    preprocessing: str | None
    tokenizer: Any | None
    source: Mapping[str, Any]

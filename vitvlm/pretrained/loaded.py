"""Result of loading weights of any format."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from vitvlm.data import tokenizers


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its weights and how its inputs are made: `loaded.model.apply(loaded.variables, images)`.

    Fields:
      model: a Flax module; layers in a loop (`scan=False`) unless asked otherwise.
      variables: {"params": …} and, with batch norm, {"batch_stats": …}, in the dtypes of the source.
      preprocessing: an operation string, for `data.operations.parse`; None if the source does not say.
      texts: the arguments of `tokenizers.open`, "tokenizer" (its spec), "length" and rules; None for image models, and
        where the source does not say.
      class_names: what the logits stand for, in their order; None without a head, and where the source does not say.
      source: where it came from: "path", "format", "model" (its name and fields, as a config's), and the source's own
        configs.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    preprocessing: str | None
    texts: Mapping[str, Any] | None
    source: Mapping[str, Any]
    class_names: tuple[str, ...] | None = None

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer | None:
        """Texts to what the text tower reads: `loaded.tokenizer.encode(["a cat"])`; None without `texts`.

        Raises ConfigError or DataError if its files cannot be used.
        """
        if self.texts is None:
            return None
        rules = dict(self.texts)
        return tokenizers.open(rules.pop("tokenizer"), **rules)

"""An image encoder alone: features to look at, nothing to learn."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, PRNGKeyArray

from vitvlm.core.config import ConfigError
from vitvlm.models.outputs import EncoderOutput
from vitvlm.tasks.base import Batch, LossFn, PredictFn, Task, Variables, images_of
from vitvlm.tasks.features import feature_fns


@dataclasses.dataclass(frozen=True)
class Encode(Task):
    """Task without an objective, to evaluate an encoder whose head, if any, is for other classes than the data's.

    Attributes:
      model: any image encoder.
    """

    model: nn.Module

    def init(self, rng: PRNGKeyArray, batch: Batch) -> dict[str, Any]:
        return dict(self.model.init(rng, images_of(batch)))

    @property
    def losses(self) -> tuple[LossFn, ...]:
        """None: there is no objective."""
        return ()

    def loss(
        self, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
        """Raises ConfigError: there is no objective."""
        raise ConfigError("task encode: it has no objective, so it can be evaluated and not trained")

    @property
    def predict_fns(self) -> Mapping[str, PredictFn]:
        return feature_fns(self._encode, self.model)

    def _encode(self, variables: Variables, batch: Batch, **call: Any) -> EncoderOutput:
        return self.model.apply(variables, images_of(batch), **call)

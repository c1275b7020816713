"""Linear layers on each token: LLaVA's connectors (Liu et al. 2023), and the last part of those that merge tokens."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from vitvlm.core import config
from vitvlm.models.connectors.base import CONNECTORS, Connector, ConnectorOutput
from vitvlm.nn.activations import activation
from vitvlm.nn.dense import Dense
from vitvlm.nn.patches import Pair
from vitvlm.nn.roles import Roles, under


class Projector(Connector, kw_only=True):
    """Rearranges the features, then maps each: linear layers to width D, with an activation between them.

    Fields, besides those of `Connector`:
      layers: how many linear maps; activation: between them; bias: whether they have one.
      hidden: width between them; by default D.
    """

    roles: ClassVar[Roles] = under(r"layers_\d+/", Dense.roles)

    layers: int = 1
    activation: str = "gelu"
    bias: bool = True
    hidden: int | None = None

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "B N E"],
        grid: Pair,
        mask: Bool[Array, "B N"] | None = None,
        *,
        train: bool = False,
        capture: Collection[str] = (),
        perturb: Mapping[str, Any] | None = None,
    ) -> ConnectorOutput:
        if self.layers < 1:
            raise config.ConfigError(f"model.connector.layers: {self.layers}; there must be one linear map at least")
        if perturb:
            raise config.ConfigError(f"perturb: connector {type(self).__name__} has no attention")
        return ConnectorOutput(self.mapped(self.rearranged(features, grid)))

    def rearranged(self, features: Float[Array, "B N E"], grid: Pair) -> Float[Array, "B M F"]:
        """Returns what is mapped token by token: here the features as they are."""
        return features

    def mapped(self, tokens: Float[Array, "B M F"]) -> Float[Array, "B M D"]:
        """Applies the linear layers."""
        for i in range(self.layers):
            tokens = tokens if i == 0 else activation(self.activation)(tokens)
            dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
            width = self.width if i == self.layers - 1 else self.hidden or self.width
            tokens = Dense(width, self.bias, name=f"layers_{i}", **dtypes)(tokens)
        return tokens

    def count(self, grid: Pair) -> int:
        return grid[0] * grid[1]


@CONNECTORS.register("linear")
class Linear(Projector, kw_only=True):
    """One linear map of each token (LLaVA 1)."""


@CONNECTORS.register("mlp")
class MLP(Projector, kw_only=True):
    """Two linear maps of each token, GELU between them (LLaVA 1.5), or more."""

    layers: int = 2

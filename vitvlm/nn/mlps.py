"""The MLP of a transformer's blocks: plain, or gated (Shazeer 2020)."""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.nn.activations import activation
from vitvlm.nn.dense import Dense
from vitvlm.nn.roles import Roles, under

MLPS = ("plain", "gated", "swiglu")


class Mlp(nn.Module):
    """Linear layers with an activation between them.

    Fields:
      width: of the hidden layer; of a gated MLP's two branches each.
      kind: "plain": W_down act(W_up x); "gated": W_down (act(W_gate x) * W_up x) (GeGLU, with gelu); "swiglu": the same
        with silu, whatever the activation (equation 6).
      bias: whether the maps have one.

    Raises ConfigError for an unknown kind or activation.
    """

    roles: ClassVar[Roles] = under("(gate|up|down)/", Dense.roles)

    width: int
    activation: str = "gelu"
    kind: str = "plain"
    bias: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        if self.kind not in MLPS:
            raise config.ConfigError(f"model.mlp: no MLP {self.kind!r}; {config.suggest(self.kind, MLPS)}")

        def dense(name: str, features: int) -> Dense:
            return Dense(features, self.bias, dtype=self.dtype, param_dtype=self.param_dtype, name=name)

        act = activation("silu" if self.kind == "swiglu" else self.activation)
        up = dense("up", self.width)(x)
        hidden = act(up) if self.kind == "plain" else act(dense("gate", self.width)(x)) * up
        return dense("down", x.shape[-1])(hidden)

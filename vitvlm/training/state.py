"""All that training changes, as one pytree: what a step takes and returns, and what a checkpoint holds."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Key

Tree = Any
Leaf = Any


@struct.dataclass
class TrainState:
    """Parameters and everything that moves with them.

    As any pytree it may also hold shapes (`jax.ShapeDtypeStruct`) or shardings in its arrays' places.

    Attributes:
      step: number of updates done; int32 scalar.
      params: the model's parameters.
      collections: the model's other collections by name, such as batch statistics; most models have none.
      opt_state: the optimizer's state.
      ema: exponential moving average of the parameters in float32, or None without `ema_decay`.
      rng: the typed key of the training; step t draws from `fold_in(rng, t)`, so it never changes.
    """

    step: Leaf
    params: Tree
    collections: Mapping[str, Tree]
    opt_state: Tree
    ema: Tree | None
    rng: Leaf

    @classmethod
    def create(
        cls, variables: Mapping[str, Tree], tx: optax.GradientTransformation, rng: Key[Array, ""], *, ema: bool = False
    ) -> "TrainState":
        """The state before the first step. Pure: jit it with `out_shardings`, or `eval_shape` it for a restore."""
        collections = dict(variables)
        params = collections.pop("params")
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            collections=collections,
            opt_state=tx.init(params),
            ema=jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params) if ema else None,
            rng=rng,
        )

    def variables(self, *, ema: bool = False) -> dict[str, Tree]:
        """Variables for the model's `apply`: the parameters, or their average with `ema`, and the other collections.

        Raises ValueError for `ema=True` if the state has no average.
        """
        if not ema:
            return {"params": self.params, **self.collections}
        if self.ema is None:
            raise ValueError(
                "this state has no averaged parameters: train with an ema decay, or evaluate with ema=False"
            )
        averaged = jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), self.ema, self.params)
        return {"params": averaged, **self.collections}

"""All that training changes, as one pytree: what a step takes and returns, and what a checkpoint holds."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Key

from vitvlm.training.freezing import whole_model

Tree = Any
Leaf = Any


@struct.dataclass
class TrainState:
    """Parameters and everything that moves with them.

    As any pytree it may also hold shapes (`jax.ShapeDtypeStruct`) or shardings in its arrays' places.

    Attributes:
      step: number of updates done; int32 scalar.
      params: the parameters that train.
      collections: the model's other collections by name, such as batch statistics; most models have none.
      opt_state: the optimizer's state, of the parameters that train.
      ema: exponential moving average of the parameters that train in float32, or None without `ema_decay`.
      rng: the typed key of the training; step t draws from `fold_in(rng, t)`, so it never changes.
      frozen: the parameters that do not train: no gradient, moment, average or update ever has their size.
    """

    step: Leaf
    params: Tree
    collections: Mapping[str, Tree]
    opt_state: Tree
    ema: Tree | None
    rng: Leaf
    frozen: Tree = struct.field(default_factory=dict)

    @classmethod
    def create(
        cls,
        variables: Mapping[str, Tree],
        tx: optax.GradientTransformation,
        rng: Key[Array, ""],
        *,
        ema: bool = False,
        frozen: Tree | None = None,
    ) -> "TrainState":
        """The state before the first step. Pure: jit it with `out_shardings`, or `eval_shape` it for a restore.

        Args:
          variables: "params", those that train, and the other collections.
          tx: the optimizer of the parameters that train.
          frozen: the model's other parameters; see `freezing.split`.
        """
        collections = dict(variables)
        params = collections.pop("params")
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            collections=collections,
            opt_state=tx.init(params),
            ema=jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params) if ema else None,
            rng=rng,
            frozen=frozen or {},
        )

    def variables(self, *, ema: bool = False) -> dict[str, Tree]:
        """Variables for the model's `apply`: its parameters as one tree, and the other collections.

        Adapters are on their matrices (`nn.lora.attach`), not merged. With `ema`, those that train are given as their
        average.
        Raises ValueError for `ema=True` if the state has no average.
        """
        if not ema:
            return {"params": whole_model(self.params, self.frozen), **self.collections}
        if self.ema is None:
            raise ValueError(
                "this state has no averaged parameters: train with an ema decay, or evaluate with ema=False"
            )
        averaged = jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), self.ema, self.params)
        return {"params": whole_model(averaged, self.frozen), **self.collections}

"""One training step: a pure function of state and batch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from vitvlm.core import compiling
from vitvlm.core.config import ConfigError
from vitvlm.training.gradients import Batch, Gradients, Metrics, Tree
from vitvlm.training.state import TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    gradients: Gradients,
    tx: optax.GradientTransformation,
    *,
    schedule: Callable[[Array], Array],
    ema_decay: float | None = None,
    pass_over_empty: bool = False,
) -> TrainStep:
    """A pure `(state, batch, constants={}) -> (state, metrics)`; `jit_train_step` compiles it.

    The batch holds `example_mask [B]`: 1 for an example, 0 for padding; the loss and its metrics are means over it.
    Metrics are float32 scalars: "loss", those of the task, "grad_norm" (before clipping), "update_norm", "param_norm"
    (after the update) and "learning_rate" (of this update). Norms are over what trains, and finite only if every
    gradient, update and parameter is, so a look at the metrics shows every step gone wrong. `constants` are collections
    that the loss reads besides those of the state.

    Args:
      gradients: of a batch; see `make_gradients` and `make_cached_gradients`.
      tx: the optimizer.
      schedule: learning rate of an update from the number of updates before it.
      pass_over_empty: a batch whose example_mask is all 0 changes nothing but the step's number, and the metric
        "examples" says how many there were. For several processes, of which none knows whether the others' parts hold
        an example.
      ema_decay: d in `ema = d ema + (1 - d) params`, taken after the update; None for no average.

    Raises ConfigError for numbers that cannot be meant and, when traced, for a batch that does not divide.
    """
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ConfigError(f"config.ema_decay: {ema_decay}; it must lie in [0, 1), or be None for no average")

    def train_step(
        state: TrainState, batch: Batch, constants: Mapping[str, Tree] | None = None
    ) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(state.rng, state.step)
        read = {**state.collections, **(constants or {})}
        grads, metrics, collections = gradients(state.params, read, batch, rng, state.frozen)
        collections = {name: collections[name] for name in state.collections}
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = jax.tree.map(lambda mean, leaf: ema_decay * mean + (1 - ema_decay) * leaf, ema, params)
        metrics = metrics | {
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
            "param_norm": optax.global_norm(params),
            "learning_rate": schedule(state.step),
        }
        after = {"params": params, "collections": collections, "opt_state": opt_state, "ema": ema}
        if pass_over_empty:
            examples = metrics["examples"] = batch["example_mask"].sum()
            before = {name: getattr(state, name) for name in after}
            after = jax.tree.map(lambda new, old: jnp.where(examples > 0, new, old), after, before)
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return state.replace(step=state.step + 1, **after), metrics

    return train_step


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A jitted step with its constants: arguments of the program, where a closure would compile them into it."""

    jitted: Any
    constants: Mapping[str, Tree]

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return self.jitted(state, batch, self.constants)

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """Lowers the step for the shapes of a state and a batch; see `jax.jit`."""
        return self.jitted.lower(state, batch, self.constants)


def jit_train_step(
    train_step: Callable[..., tuple[TrainState, Metrics]],
    state_shardings: Tree,
    batch_sharding: NamedSharding,
    constants: Mapping[str, Tree] | None = None,
) -> CompiledStep:
    """Compiles a step: the state stays where `state_shardings` puts it and is donated; metrics are replicated.

    Args:
      constants: collections that the loss reads besides the state's; arrays that lie on the batch's mesh stay as they
        are, all others are replicated.
    """
    mesh = batch_sharding.mesh
    replicated = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> jax.Array:
        there = isinstance(leaf, jax.Array) and getattr(leaf.sharding, "mesh", None) == mesh
        return leaf if there else jax.device_put(leaf, replicated)

    placed = jax.tree.map(put, dict(constants or {}))
    jitted = jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_sharding, jax.tree.map(lambda leaf: leaf.sharding, placed)),
        out_shardings=(state_shardings, replicated),
        donate_argnums=0,
        compiler_options=compiling.compiler_options(mesh.devices.ravel()),
    )
    return CompiledStep(jitted, placed)

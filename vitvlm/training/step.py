"""One training step: a pure function of state and batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key

from vitvlm.core.config import ConfigError
from vitvlm.training.state import TrainState

Tree = Any
Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]
Loss = Callable[[Tree, Batch, Key[Array, ""], bool], tuple[Float[Array, ""], Mapping[str, Array], Mapping[str, Tree]]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    schedule: Callable[[Array], Array],
    accumulate: int = 1,
    ema_decay: float | None = None,
    trainable: Tree | None = None,
) -> TrainStep:
    """A pure `(state, batch) -> (state, metrics)`; `jit_train_step` compiles it.

    The batch holds `mask [B]`: 1 for an example, 0 for padding; the loss and its metrics are means over it. Metrics
    are float32 scalars: "loss", those of the task, "grad_norm" (before clipping), "update_norm", "param_norm" (after
    the update) and "learning_rate" (of this update). The norms are finite only if every gradient, update and
    parameter is, so a look at the metrics shows every step gone wrong.

    Args:
      loss: a task's `loss(variables, batch, rng, train) -> (scalar, metrics, updated collections)`.
      tx: the optimizer.
      schedule: learning rate of an update from the number of updates before it.
      accumulate: number of micro-batches that one update is summed over; it must divide B. Micro-batch k of A
        holds examples k, k+A, k+2A …, so that no example moves between devices. A micro-batch counts by its share
        of the mask, which makes the sum equal to the whole batch's gradient for any loss that is a mean over
        examples (a contrastive loss is not). Micro-batch k draws random numbers from `fold_in(step's key, k)`, so
        dropout and random masks differ from those of the unsplit batch; batch statistics see the micro-batches
        in turn.
      ema_decay: d in `ema = d ema + (1 - d) params`, taken after the update; None for no average.
      trainable: tree of booleans like the parameters; False stops the gradient there, which spares its backward
        pass and leaves it out of "grad_norm". None trains everything.

    Raises ConfigError for numbers that cannot be meant and, when traced, for a batch that does not divide.
    """
    if accumulate < 1:
        raise ConfigError(f"config.accumulate: {accumulate}; it counts micro-batches: at least 1")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ConfigError(f"config.ema_decay: {ema_decay}; it must lie in [0, 1), or be None for no average")

    def train_loss(params, collections, batch, rng):
        if trainable is not None:
            params = jax.tree.map(lambda leaf, on: leaf if on else jax.lax.stop_gradient(leaf), params, trainable)
        value, metrics, updated = loss({"params": params, **collections}, batch, rng, True)
        return value, ({**metrics, "loss": value}, {**collections, **updated})

    gradients = jax.grad(train_loss, has_aux=True)

    def accumulated(params, collections, batch, rng):
        micro_batches = _split(batch, accumulate)
        counts = micro_batches["mask"].sum(axis=1)  # [A]
        shares = counts / jnp.maximum(counts.sum(), 1)

        def add(carry, item):
            total, collections = carry
            index, share, micro_batch = item
            grads, (metrics, collections) = gradients(params, collections, micro_batch, jax.random.fold_in(rng, index))
            total = jax.tree.map(lambda a, b: a + share * b.astype(a.dtype), total, grads)
            return (total, collections), jax.tree.map(lambda value: share * value, metrics)

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), params)
        (grads, collections), metrics = jax.lax.scan(
            add, (zeros, collections), (jnp.arange(accumulate), shares, micro_batches)
        )
        grads = jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, params)
        return grads, (jax.tree.map(lambda values: values.sum(axis=0), metrics), collections)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(state.rng, state.step)
        compute = gradients if accumulate == 1 else accumulated
        grads, (metrics, collections) = compute(state.params, state.collections, batch, rng)
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
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        state = state.replace(step=state.step + 1, params=params, collections=collections, opt_state=opt_state, ema=ema)
        return state, metrics

    return train_step


def jit_train_step(train_step: TrainStep, state_shardings: Tree, batch_sharding: NamedSharding) -> TrainStep:
    """Compiles a step: the state stays where `state_shardings` puts it and is donated; metrics are replicated."""
    replicated = NamedSharding(batch_sharding.mesh, PartitionSpec())
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, batch_sharding),
        out_shardings=(state_shardings, replicated),
        donate_argnums=0,
    )


def _split(batch: Batch, parts: int) -> dict[str, Array]:
    """[B, …] as [A, B / A, …]; part k holds rows k, k+A, k+2A …, which leaves each row on its device."""
    size = batch["mask"].shape[0]
    if size % parts:
        raise ConfigError(f"config.accumulate: a batch of {size} does not divide into {parts} micro-batches")
    return {
        name: jnp.moveaxis(value.reshape(size // parts, parts, *value.shape[1:]), 1, 0) for name, value in batch.items()
    }

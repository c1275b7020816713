"""The gradient of a batch: of the whole of it at once, or summed over micro-batches."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vitvlm.core.config import ConfigError
from vitvlm.training.freezing import whole_model

Tree = Any
Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]
Loss = Callable[[Tree, Batch, Key[Array, ""], bool], tuple[Float[Array, ""], Mapping[str, Array], Mapping[str, Tree]]]


class Gradients(Protocol):
    """The gradient of a batch with respect to the parameters that train."""

    def __call__(
        self, params: Tree, collections: Tree, batch: Batch, rng: Key[Array, ""], frozen: Tree | None = None
    ) -> tuple[Tree, Metrics, Tree]:
        """Returns (gradients like `params`, metrics, updated collections).

        The loss is given `params` and `frozen` as one tree.
        """


def make_gradients(
    losses: Loss | Sequence[Loss],
    *,
    accumulate: int = 1,
    unroll: bool = False,
    whole_batch: Callable[[Batch], Batch] = lambda batch: batch,
) -> Gradients:
    """A pure `(params, collections, batch, rng, frozen=None) -> (gradients, metrics, collections)`.

    What is frozen has no gradient, of whatever dtype it is: `jax.grad` never sees it as something to differentiate.
    The batch holds `example_mask [B]`: 1 for an example, 0 for padding; the loss and its metrics, to which "loss" is
    added, are means over it.

    Args:
      losses: a task's `loss(variables, batch, rng, train) -> (scalar, metrics, updated collections)`, or several, of
        which each (micro-)batch takes one, drawn by its key. The program holds them all, and runs the one.
      accumulate: number of micro-batches that the gradient is summed over; it must divide B. Micro-batch k of A
        holds examples k, k+A, k+2A …, so that no example moves between devices. A micro-batch counts by its share
        of the mask, which makes the sum equal to the whole batch's gradient for any loss that is a mean over
        examples (a contrastive loss is not). Micro-batch k draws random numbers from `fold_in(step's key, k)`, so
        dropout and random masks differ from those of the unsplit batch; batch statistics see the micro-batches
        in turn.
      unroll: whether the program holds the micro-batches one next to the other, instead of a loop over them.
        A loop saves memory. Side by side nothing is saved, but a CPU's cores work on a micro-batch each, where they
        would wait for each other within each small operation of a whole batch.
      whole_batch: adds to a batch what its micro-batches must know of all of it, such as a sum of weights.

    Raises ConfigError for fewer than one micro-batch and, when traced, for a batch that does not divide.
    """
    if accumulate < 1:
        raise ConfigError(f"config.accumulate: {accumulate}; it counts micro-batches: at least 1")
    if unroll and accumulate == 1:
        raise ConfigError("config.unroll: there is one micro-batch only: set config.accumulate, to 2 for 2 cores")

    def gradients_of(loss: Loss):
        return jax.grad(functools.partial(train_loss, loss), has_aux=True)

    def train_loss(loss, params, frozen, collections, batch, rng):
        value, metrics, updated = loss({"params": whole_model(params, frozen, True), **collections}, batch, rng, True)
        return value, ({**metrics, "loss": value}, {**collections, **updated})

    def whole(params, collections, batch, rng, frozen=None):
        if len(choices) == 1:
            grads, (metrics, collections) = choices[0](params, frozen, collections, batch, rng)
        else:
            # The switch is around the gradients: inside, each loss would save room for what the others save.
            draw, rng = jax.random.split(rng)
            chosen = jax.random.randint(draw, (), 0, len(choices))
            grads, (metrics, collections) = jax.lax.switch(chosen, choices, params, frozen, collections, batch, rng)
        return grads, metrics, collections

    choices = [gradients_of(loss) for loss in (losses if isinstance(losses, Sequence) else [losses])]

    def accumulated(params, collections, batch, rng, frozen=None):
        micro_batches = split(dict(whole_batch(batch)), accumulate)
        counts = micro_batches["example_mask"].sum(axis=1)  # [A]
        shares = counts / jnp.maximum(counts.sum(), 1)

        def add(carry, item):
            total, collections = carry
            index, share, micro_batch = item
            own = jax.random.fold_in(rng, index)
            grads, metrics, collections = whole(params, collections, micro_batch, own, frozen)
            total = jax.tree.map(lambda a, b: a + share * b.astype(a.dtype), total, grads)
            return (total, collections), jax.tree.map(lambda value: share * value, metrics)

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), params)
        (grads, collections), metrics = jax.lax.scan(
            add, (zeros, collections), (jnp.arange(accumulate), shares, micro_batches), unroll=unroll
        )
        grads = jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, params)
        return grads, jax.tree.map(lambda values: values.sum(axis=0), metrics), collections

    return whole if accumulate == 1 else accumulated


def split(examples: Tree, parts: int) -> Tree:
    """A tree of arrays [B, …] as [A, B / A, …]; part k holds rows k, k+A, k+2A …, which leaves each on its device.

    Raises ConfigError for a batch that does not divide.
    """
    size = len(jax.tree.leaves(examples)[0])
    if size % parts:
        raise ConfigError(f"config.accumulate: a batch of {size} does not divide into {parts} micro-batches")
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(size // parts, parts, *leaf.shape[1:]), 1, 0), examples)

"""The gradient of a loss over all pairs of a batch, by micro-batches: GradCache (Gao et al. 2021, section 3.2).

A contrastive loss is no mean over examples, so the micro-batches' own losses do not add up to it (`gradients` can not
split it). But it needs of an example only the embeddings, which are small. So: embed all micro-batches, keeping
nothing else; take the loss's gradient with respect to the embeddings; then embed each micro-batch once more and send
its part of that gradient through the encoder. One forward pass more than whole, for a micro-batch's memory.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vitvlm.core.config import ConfigError
from vitvlm.training.freezing import whole_model
from vitvlm.training.gradients import Batch, Gradients, Metrics, split

Tree = Any
Encode = Callable[[Tree, Batch, Key[Array, ""]], Tree]
PairLoss = Callable[[Tree, Tree, Batch], tuple[Float[Array, ""], Mapping[str, Array]]]


def make_cached_gradients(
    encode: Encode, loss: PairLoss, *, accumulate: int
) -> Callable[[Tree, Batch, Key[Array, ""]], tuple[Tree, Metrics]]:
    """A pure `(params, batch, rng) -> (gradients, metrics)`, equal to those of the unsplit batch.

    Both functions are given all parameters, and use what they need: towers the one, temperature and bias the other.
    The gradient is the sum of what both send back, in the parameters' dtypes. The encoder may treat an example by
    itself only: with batch statistics the result is not the unsplit batch's.

    Args:
      encode: `(params, micro-batch, rng) -> embeddings`, a tree of floating-point arrays [B / A, …]. Micro-batch k
        of A holds examples k, k+A, k+2A …, and the key is `fold_in(rng, k)` in both passes: the same dropout.
      loss: `(embeddings, params, batch) -> (scalar, metrics)`, of the whole batch in its own order, so it sees the
        example_mask [B]. "loss" is added to its metrics.
      accumulate: number of micro-batches, A; it must divide B. With 1 the batch is embedded once only.

    Raises ConfigError for fewer than one micro-batch and, when traced, for a batch that does not divide.
    """
    if accumulate < 1:
        raise ConfigError(f"config.accumulate: {accumulate}; it counts micro-batches: at least 1")

    def loss_of(params, embeddings, batch):
        value, metrics = loss(embeddings, params, batch)
        return value, {**metrics, "loss": value}

    def whole(params, batch, rng):
        def composed(params):
            return loss_of(params, encode(params, batch, jax.random.fold_in(rng, 0)), batch)

        return jax.grad(composed, has_aux=True)(params)

    def cached(params, batch, rng):
        micro_batches = (split(batch, accumulate), jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(accumulate)))
        embeddings = jax.lax.map(lambda micro_batch: encode(params, *micro_batch), micro_batches)
        embeddings = jax.tree.map(_join, embeddings)
        (own, cache), metrics = jax.grad(loss_of, argnums=(0, 1), has_aux=True)(params, embeddings, batch)

        def add(total, item):
            micro_batch, cotangents = item
            _, pull_back = jax.vjp(lambda params: encode(params, *micro_batch), params)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, pull_back(cotangents)[0]), None

        start = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), own)
        gradients, _ = jax.lax.scan(add, start, (micro_batches, split(cache, accumulate)))
        return jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), gradients, params), metrics

    return whole if accumulate == 1 else cached


def cached_gradients(encode: Encode, loss: PairLoss, *, accumulate: int) -> Gradients:
    """Wraps `make_cached_gradients` in the form of `make_gradients`, for a model without collections.

    Raises ConfigError, when traced, for a model with batch statistics.
    """

    def gradients(params, collections, batch, rng, frozen=None):
        if collections:
            raise ConfigError(
                f"config.accumulate: {accumulate}; micro-batches of a model with {', '.join(collections)} are not the "
                "whole batch to a loss over all pairs: set it to 1"
            )
        cached = make_cached_gradients(
            lambda params, batch, rng: encode(whole_model(params, frozen, True), batch, rng),
            lambda embeddings, params, batch: loss(embeddings, whole_model(params, frozen, True), batch),
            accumulate=accumulate,
        )
        return *cached(params, batch, rng), collections

    return gradients


def _join(parts: Float[Array, "A b ..."]) -> Float[Array, "B ..."]:
    """Undoes `split`."""
    return jnp.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[2:])

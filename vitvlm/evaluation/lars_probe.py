"""The linear classifier of MAE's linear-probe protocol: BatchNorm without affine + Linear, trained with LARS."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

EPS = 1e-6  # of the batch normalisation
TRUST = 0.001  # of LARS
MOMENTUM = 0.9  # of LARS, and of the running statistics


class Weights(NamedTuple):
    kernel: Float[Array, "D S"]
    bias: Float[Array, " S"]


class Statistics(NamedTuple):
    """Running mean and (unbiased) variance of each feature."""

    mean: Float[Array, " D"]
    variance: Float[Array, " D"]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained probe: BatchNorm with its running statistics, then the linear layer."""

    weights: Weights
    statistics: Statistics

    def logits(self, features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n S"]:
        scale = 1 / np.sqrt(np.asarray(self.statistics.variance) + EPS)
        return (features - np.asarray(self.statistics.mean)) * scale @ np.asarray(self.weights.kernel) + np.asarray(
            self.weights.bias
        )


def fit(
    features: Float[np.ndarray, "m D"],
    labels: Int[np.ndarray, " m"],
    *,
    classes: int,
    epochs: int,
    warmup_epochs: int,
    batch_size: int,
    base_learning_rate: float,
    seed: int,
) -> Fitted:
    """Trains on shuffled batches, the incomplete last one of each epoch dropped. Deterministic given the seed."""
    rng = np.random.default_rng(seed)
    steps = len(labels) // batch_size
    weights = Weights(
        jnp.asarray(rng.normal(scale=0.01, size=(features.shape[1], classes)), jnp.float32), jnp.zeros(classes)
    )
    statistics = Statistics(jnp.zeros(features.shape[1]), jnp.ones(features.shape[1]))
    optimizer = lars(
        optax.warmup_cosine_decay_schedule(
            0.0, base_learning_rate * batch_size / 256, warmup_epochs * steps, epochs * steps
        )
    )
    state = (weights, statistics, optimizer.init(weights))
    run_epoch = jax.jit(functools.partial(_epoch, optimizer), donate_argnums=0)
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    for _ in range(epochs):
        order = rng.permutation(len(labels))[: steps * batch_size].reshape(steps, batch_size)
        state = run_epoch(state, features, labels, order)
    return Fitted(*jax.device_get(state[:2]))


def relative_movement(examples: int, epochs: int, base_learning_rate: float) -> float:
    """Returns how far LARS can move the kernel in all, in units of its own length; the batch size cancels out.

    Each step moves it by rate * .001 / (1 - momentum) of its length; the cosine halves the mean rate.
    """
    return 0.5 * epochs * examples * base_learning_rate / 256 * TRUST / (1 - MOMENTUM)


def lars(rate: optax.Schedule) -> optax.GradientTransformation:
    """LARS as MAE uses it: trust ratio .001 on the kernel only, momentum before the learning rate, no weight decay.

    (`optax.lars` applies the rate before the momentum, which differs while the rate changes.)
    """
    return optax.chain(
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=TRUST), Weights(kernel=True, bias=False)),
        optax.trace(decay=MOMENTUM),
        optax.scale_by_learning_rate(rate),
    )


def _epoch(optimizer, state, features: Float[Array, "m D"], labels: Int[Array, " m"], order: Int[Array, "steps B"]):
    def step(state, rows):
        weights, running, optimizer_state = state
        x, y = features[rows], labels[rows]
        gradients, batch = jax.grad(_loss, has_aux=True)(weights, x, y)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, weights)
        running = jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, running, batch)
        return (optax.apply_updates(weights, updates), running, optimizer_state), None

    return jax.lax.scan(step, state, order)[0]


def _loss(weights: Weights, x: Float[Array, "B D"], y: Int[Array, " B"]) -> tuple[Float[Array, ""], Statistics]:
    mean, variance = x.mean(axis=0), x.var(axis=0)
    logits = (x - mean) * jax.lax.rsqrt(variance + EPS) @ weights.kernel + weights.bias
    unbiased = variance * len(x) / max(len(x) - 1, 1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), Statistics(mean, unbiased)

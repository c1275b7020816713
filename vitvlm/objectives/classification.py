"""Cross-entropies over S classes and the accuracies that go with them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def smooth_labels(labels: Int[Array, "B"], classes: int, smoothing: float = 0.0) -> Float[Array, "B S"]:
    """One-hot targets smoothed: (1 - e) on the label plus e/S on every class (Szegedy et al. 2016, section 7)."""
    return jax.nn.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes


def softmax_cross_entropy(logits: Float[Array, "B S"], targets: Float[Array, "B S"]) -> Float[Array, "B"]:
    """-sum_s target_s log softmax(logits)_s for each example, in nats; float32 whatever the logits are."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def sigmoid_cross_entropy(logits: Float[Array, "B S"], targets: Float[Array, "B S"]) -> Float[Array, "B"]:
    """Sum over classes of the binary cross-entropies, in nats (DeiT III, section 3.1; Wightman et al. 2021)."""
    logits = logits.astype(jnp.float32)
    return -jnp.sum(targets * jax.nn.log_sigmoid(logits) + (1.0 - targets) * jax.nn.log_sigmoid(-logits), axis=-1)


def top_k_correct(logits: Float[Array, "B S"], labels: Int[Array, "B"], k: int = 1) -> Float[Array, "B"]:
    """1.0 where fewer than k classes score at least as high as the label's, so that ties never count as hits."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    rivals = jnp.sum(logits >= own, axis=-1) - 1
    return (rivals < k).astype(jnp.float32)

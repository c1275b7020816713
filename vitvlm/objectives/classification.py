"""Cross-entropies over S classes, weighted by class or not, and the accuracies that go with them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def smooth_labels(labels: Int[Array, "B"], classes: int, smoothing: float = 0.0) -> Float[Array, "B S"]:
    """One-hot targets smoothed: (1 - e) on the label plus e/S on every class (Szegedy et al. 2016, section 7)."""
    return jax.nn.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes


def smooth_multi_hot(labels: Float[Array, "B S"], smoothing: float = 0.0) -> Float[Array, "B S"]:
    """Multi-hot targets smoothed: (1 - e) y + e/2, each class a question of its own with two answers."""
    return labels * (1.0 - smoothing) + smoothing / 2


def softmax_cross_entropy(
    logits: Float[Array, "B S"], targets: Float[Array, "B S"], weights: Float[Array, "S"] | None = None
) -> Float[Array, "B"]:
    """-sum_s w_s target_s log softmax(logits)_s for each example, in nats; always float32."""
    return -jnp.sum(_weighted(targets, weights) * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def sigmoid_cross_entropy(
    logits: Float[Array, "B S"], targets: Float[Array, "B S"], weights: Float[Array, "S"] | None = None
) -> Float[Array, "B"]:
    """Sum over classes of w_s times the binary cross-entropies, in nats.

    DeiT III, section 3.1; Wightman et al. 2021. With weights as PyTorch's BCEWithLogitsLoss(weight=w), summed.
    """
    logits = logits.astype(jnp.float32)
    terms = targets * jax.nn.log_sigmoid(logits) + (1.0 - targets) * jax.nn.log_sigmoid(-logits)
    return -jnp.sum(_weighted(terms, weights), axis=-1)


def balanced_weights(counts: Int[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
    """Weights n / (S n_c) from the number n_c of labels of each class, so that all classes together weigh the same.

    As scikit-learn's class_weight="balanced" (King and Zeng 2001). Raises ValueError for a class without a label.
    """
    counts = np.asarray(counts)
    if not counts.all():
        raise ValueError(f"class {int(np.argmin(counts))} has no label, so no weight balances it")
    return counts.sum() / (len(counts) * counts)


def weight_scale(labels: Int[Array, "B"], mask: Float[Array, "B"], weights: Float[Array, "S"]) -> Float[Array, ""]:
    """Factor from the mean of weighted losses over the real examples to the weighted mean: B / sum_b w_label(b).

    The result equals the mean of PyTorch's CrossEntropyLoss(weight=w) for labels; for targets that are distributions
    PyTorch divides by B. The factor is 0 if every label has weight 0.
    """
    mask = mask.astype(jnp.float32)
    total = (mask * weights[labels]).sum()
    return jnp.where(total > 0, mask.sum() / jnp.where(total > 0, total, 1.0), 0.0)


def top_k_correct(logits: Float[Array, "B S"], labels: Int[Array, "B"], k: int = 1) -> Float[Array, "B"]:
    """1.0 where fewer than k classes score at least as high as the label's, so that ties never count as hits."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    rivals = jnp.sum(logits >= own, axis=-1) - 1
    return (rivals < k).astype(jnp.float32)


def answers_correct(logits: Float[Array, "B S"], labels: Float[Array, "B S"]) -> Float[Array, "B"]:
    """The share of the S yes-or-no answers that are right, yes where the sigmoid of a logit is above 0.5."""
    return jnp.mean((logits > 0) == (labels > 0.5), axis=-1, dtype=jnp.float32)


def _weighted(terms: Float[Array, "B S"], weights: Float[Array, "S"] | None) -> Float[Array, "B S"]:
    return terms if weights is None else terms * weights

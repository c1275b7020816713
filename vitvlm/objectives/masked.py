"""Means over the real examples of a batch: padding and unreadable images have mask 0 and weigh nothing."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def mean(values: Float[Array, "B"], mask: Float[Array, "B"]) -> Float[Array, ""]:
    """Mean of the values whose mask is 1, in float32; 0 for a batch without a real example."""
    values, mask = values.astype(jnp.float32), mask.astype(jnp.float32)
    # `where` and not a product: a NaN under mask 0 must not reach the mean.
    return jnp.where(mask > 0, values * mask, 0.0).sum() / jnp.maximum(mask.sum(), 1.0)

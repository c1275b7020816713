"""Attention of the tokens that are learned: how much of it goes to the tokens of images."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def on_images(
    attention: Float[Array, "depth B K L L"], learned: Int[Array, "B L"], image_index: Int[Array, "B L"]
) -> dict[str, Array]:
    """Attention on image tokens at the places from which learned tokens are predicted.

    Args:
      attention: weights of each layer. learned: 1 at learned tokens. image_index: -1 at places of text.

    Returns mass [B, depth, K], the share of the attention that is on image tokens, and share [B, depth], that of image
    tokens among those looked at (of weight above 0), both means over the places; 0 for a text that learns nothing.
    """
    from_here = jnp.pad(learned[:, 1:] > 0, [(0, 0), (0, 1)]).astype(jnp.float32)
    from_here = from_here / jnp.maximum(from_here.sum(axis=1, keepdims=True), 1)
    image = (image_index >= 0).astype(jnp.float32)
    weights = attention.astype(jnp.float32)
    seen = (weights > 0).astype(jnp.float32)
    mass = jnp.einsum("nbkqm,bq,bm->bnk", weights, from_here, image)
    shares = jnp.einsum("nbkqm,bm->nbkq", seen, image) / jnp.maximum(seen.sum(axis=-1), 1)
    return {"mass": mass, "share": jnp.einsum("nbkq,bq->bnk", shares, from_here).mean(axis=-1)}

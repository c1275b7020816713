"""Image-text matching (Li et al. 2021, section 3.2): whether a text is of an image, with hard negatives."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vitvlm.objectives.contrastive import ABSENT


def hard_negatives(
    rng: Key[Array, ""],
    logits: Float[Array, "B B"],
    mask: Float[Array, "B"],
    by_text: Float[Array, "B B"] | None = None,
    floor: float = 0.0,
) -> tuple[Int[Array, "B"], Int[Array, "B"], Bool[Array, ""]]:
    """Draws for each image another pair's text, and for each text another pair's image: the likelier, the more similar.

    Text t is drawn for image i with probability softmax over the others of logits[i, t], an image for text t likewise
    of logits[:, t]. Nothing is drawn by a gradient.

    Args:
      logits: scaled similarities; row and column i are a pair.
      mask: 1 for real pairs, 0 for padding, which is never drawn for a real pair.
      by_text: those of texts (rows) for images, where they are not `logits` transposed.
      floor: added to each probability before one's own pair is left out (the authors of BLIP: 1e-4).

    Returns the texts' places by image, the images' by text, and whether there are two real pairs to draw from; without,
    the places mean nothing.
    """
    others = (mask[None, :] > 0) & (jnp.eye(len(mask)) == 0)

    def draw(rng: Key[Array, ""], logits: Float[Array, "B B"]) -> Int[Array, "B"]:
        logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
        if floor:
            logits = jnp.log(jax.nn.softmax(jnp.where(mask > 0, logits, ABSENT)) + floor)
        return jax.random.categorical(rng, jnp.where(others, logits, ABSENT), axis=1)

    for_images, for_texts = jax.random.split(rng)
    texts, images = draw(for_images, logits), draw(for_texts, logits.T if by_text is None else by_text)
    return texts, images, jnp.sum(mask > 0) > 1


def matching(
    logits: Float[Array, "B 3 2"], mask: Float[Array, "B"], negatives: Bool[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross-entropy in nats of a pair, its text with another image, and its image with another text; and accuracy.

    Args:
      logits: of each pair and its two negatives, in this order, "not of it" first; float32 inside.
      mask: 1 for real pairs, 0 for padding.
      negatives: whether there are any; otherwise the pairs alone count.
    """
    labels = jnp.array([1, 0, 0])
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.take_along_axis(log_p, jnp.broadcast_to(labels[:, None], (len(logits), 3, 1)), axis=2)[..., 0]
    counts = (mask[:, None] > 0) & (jnp.array([True, False, False]) | negatives)
    right = jnp.argmax(logits, axis=2) == labels
    total = jnp.maximum(counts.sum(), 1)
    return jnp.sum(losses, where=counts) / total, jnp.sum(right, where=counts) / total

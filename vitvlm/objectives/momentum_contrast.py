"""Contrast with what a slowly moving copy of the encoders makes, of this batch and of those before (Li et al. 2021).

The copy's embeddings are candidates besides the batch's own, kept in a queue; and its similarities are soft targets, as
a text may fit another image than its own.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitvlm.core.config import ConfigError
from vitvlm.objectives import classification, masked
from vitvlm.objectives.contrastive import ABSENT, similarities

Queue = dict[str, Array]  # "image", "text" [Q, E]; "real" [Q], 1 where there is a pair; "place", the next to be written


def empty_queue(size: int, embed_dim: int) -> Queue:
    """A queue of so many pairs in which none is real; places that hold none are no candidates."""
    embeddings = jnp.zeros((size, embed_dim), jnp.float32)
    return {
        "image": embeddings,
        "text": embeddings,
        "real": jnp.zeros(size, jnp.float32),
        "place": jnp.zeros((), jnp.int32),
    }


def enqueued(queue: Queue, image: Float[Array, "B E"], text: Float[Array, "B E"], mask: Float[Array, "B"]) -> Queue:
    """The queue with a batch's pairs in the place of the oldest. Raises ConfigError for a larger batch."""
    size = len(queue["real"])
    if not size:
        return queue
    if len(mask) > size:
        raise ConfigError(f"task.queue_size: {size}, and batches of {len(mask)}: make it as large, or 0 for none")
    places = (queue["place"] + jnp.arange(len(mask))) % size
    new = {"image": image, "text": text, "real": (mask > 0).astype(jnp.float32)}
    new = {name: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)) > 0, x, 0) for name, x in new.items()}
    written = {name: queue[name].at[places].set(x) for name, x in new.items()}
    return {**written, "place": (queue["place"] + len(mask)) % size}


def moved(momentum: Float[Array, "..."], current: Float[Array, "..."], rate: float) -> Float[Array, "..."]:
    """rate * momentum + (1 - rate) * current, float32: equation 1 of He et al. 2020."""
    return rate * momentum.astype(jnp.float32) + (1 - rate) * current.astype(jnp.float32)


def contrast(
    image: Float[Array, "B E"],
    text: Float[Array, "B E"],
    slow_image: Float[Array, "B E"],
    slow_text: Float[Array, "B E"],
    queue: Queue,
    scale: Float[Array, ""],
    mask: Float[Array, "B"],
    alpha: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], Float[Array, "B B"], Float[Array, "B B"]]:
    """Mean of the cross-entropies image to text and text to image over the batch and the queue, in nats, float32.

    Candidates are the slow embeddings of this batch, and behind them those of the queue. The target of row i is
    alpha * softmax(scale * what the slow encoder of row i has for the candidates) + (1 - alpha) * one-hot at i
    (Li et al. 2021, equation 6; Li et al. 2022, section 3.2). Nothing flows back through slow embeddings and targets.

    Args:
      image, text, slow_image, slow_text: of length 1; row i of all is a pair.
      mask: 1 for real pairs, 0 for padding, which is neither an example nor a candidate.

    Returns the loss, and the batch's own logits by which hard negatives are drawn: of image i for slow text j, and of
    text i for slow image j.
    """
    B = len(mask)
    slow = {"image": slow_image, "text": slow_text}
    slow = {
        name: jax.lax.stop_gradient(jnp.concatenate([x.astype(jnp.float32), queue[name]])) for name, x in slow.items()
    }
    there = jnp.concatenate([(mask > 0).astype(jnp.float32), queue["real"]])
    own = jnp.eye(B, len(there))
    losses, in_batch = [], []
    for given, slowly, candidates in (
        (image, slow["image"][:B], slow["text"]),
        (text, slow["text"][:B], slow["image"]),
    ):
        logits = _logits(given, candidates, scale, mask, there)
        soft = jax.nn.softmax(_logits(slowly, candidates, jax.lax.stop_gradient(scale), mask, there))
        targets = jnp.where(there > 0, alpha * soft + (1 - alpha) * own, 0)
        losses.append(classification.softmax_cross_entropy(logits, targets))
        in_batch.append(logits[:, :B])
    return masked.mean((losses[0] + losses[1]) / 2, mask), *in_batch


def _logits(
    given: Float[Array, "B E"],
    candidates: Float[Array, "C E"],
    scale: Float[Array, ""],
    mask: Float[Array, "B"],
    there: Float[Array, "C"],
) -> Float[Array, "B C"]:
    return jnp.where(there > 0, scale * similarities(given, candidates, mask, there), ABSENT)

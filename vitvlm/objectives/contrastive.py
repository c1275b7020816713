"""Contrastive image-text objectives over all pairs of a batch: softmax (CLIP, ALIGN) and sigmoid (SigLIP).

Row i of the image and of the text embeddings is a pair; every other real text is a negative of image i, and the other
way round. The embeddings come L2-normalised: nothing is normalised here. Under mask 0 a pair is neither an example nor
a negative, whatever its embeddings hold. These forms hold [B, B] logits; `chunked` has the same values without them.

An image may have M embeddings [B, M, D], those of a Q-Former's queries: the most similar one counts (Li et al. 2023).
`chunked` takes one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vitvlm.objectives import classification, masked

# Logit of a pair that is not there. Finite, so that a row without any real pair has no NaN in its gradient.
ABSENT = -1e30


def softmax(
    image: Float[Array, "B *M D"],
    text: Float[Array, "B D"],
    scale: Float[Array, ""],
    mask: Float[Array, "B"],
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean of the cross-entropies image to text and text to image, in nats, float32; 0 without a real pair.

    logits = scale I T^T, and the label of row i is i (Radford et al. 2021, figure 3). ALIGN (Jia et al. 2021) adds its
    two directions, equations 1 and 2: that is twice this mean.

    Args:
      scale: 1 / temperature. CLIP learns its logarithm, and keeps it at 100 or below.
      mask: 1 for real pairs, 0 for padding.
      label_smoothing: e of (1 - e) on the label plus e/n on each of the n real pairs (ALIGN: 0.1).
    """
    pairs = _real_pairs(mask)
    logits = jnp.where(pairs, scale * similarities(image, text, mask, mask), ABSENT)
    uniform = 1.0 / jnp.maximum(jnp.sum(mask > 0), 1)
    targets = pairs * ((1.0 - label_smoothing) * jnp.eye(len(mask)) + label_smoothing * uniform)
    to_text = classification.softmax_cross_entropy(logits, targets)
    to_image = classification.softmax_cross_entropy(logits.T, targets)
    return masked.mean((to_text + to_image) / 2, mask)


def sigmoid(
    image: Float[Array, "B D"],
    text: Float[Array, "B D"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    mask: Float[Array, "B"],
) -> Float[Array, ""]:
    """-1/n sum_ij log sigmoid(z_ij (scale I_i . T_j + bias)), z = 1 for pairs and -1 otherwise, over n real pairs.

    Zhai et al. 2023, section 3.2 and algorithm 1; in nats, float32; 0 without a real pair.

    Args:
      scale, bias: the paper's t and b. It learns log t and b, from log 10 and -10.
      mask: 1 for real pairs, 0 for padding.
    """
    logits = scale * similarities(image, text, mask, mask) + bias
    losses = -jax.nn.log_sigmoid(jnp.where(jnp.eye(len(mask)) > 0, logits, -logits))
    return masked.mean(jnp.sum(losses, axis=1, where=_real_pairs(mask)), mask)


def accuracies(
    image: Float[Array, "B *M D"], text: Float[Array, "B D"], mask: Float[Array, "B"]
) -> dict[str, Float[Array, ""]]:
    """Retrieval within the batch: the share of real pairs whose own partner is strictly the most similar.

    "image_to_text_accuracy" is over the texts for each image, "text_to_image_accuracy" over the images for each text.
    A tie is a miss, so embeddings that all collapsed to one score 0. Chance is 1/n, so compare at equal batch sizes.
    """
    scores = similarities(image, text, mask, mask)
    rivals = jnp.where(_real_pairs(mask) & (jnp.eye(len(mask)) == 0), scores, ABSENT)
    own = jnp.diagonal(scores)
    return {
        "image_to_text_accuracy": masked.mean(own > rivals.max(axis=1), mask),
        "text_to_image_accuracy": masked.mean(own > rivals.max(axis=0), mask),
    }


def similarities(
    image: Float[Array, "b *M D"],
    text: Float[Array, "c D"],
    image_mask: Float[Array, "b"],
    text_mask: Float[Array, "c"],
) -> Float[Array, "b c"]:
    """I T^T in float32, of M embeddings the largest; 0, also in the gradient, where either is padding."""
    # Zeroed before the product: a NaN in padding would reach every gradient as 0 x NaN.
    image = jnp.where(image_mask.reshape(-1, *[1] * (image.ndim - 1)) > 0, image, 0)
    text = jnp.where(text_mask[:, None] > 0, text, 0)
    # Accelerators round float32 factors to some 3 digits by default, and scale multiplies the error by up to 100.
    exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    products = jnp.einsum("b...d,cd->bc...", image, text, **exact)
    return products if image.ndim == 2 else products.max(axis=2)


def _real_pairs(mask: Float[Array, "B"]) -> Bool[Array, "B B"]:
    return (mask[:, None] > 0) & (mask[None, :] > 0)

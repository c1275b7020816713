"""Predicting each token of a text from those before it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


def next_token_losses(
    logits: Float[Array, "B L V"], text_tokens: Int[Array, "B L"], text_mask: Shaped[Array, "B L"]
) -> Float[Array, "B"]:
    """-sum_t log P(token t + 1 | tokens up to t) of each text, in nats, float32 (Yu et al. 2022, equation 2).

    Args:
      logits: at place t, of the token at t + 1; those at the last place say nothing here.
      text_mask: 1 or True for real tokens; only such are predicted, and the first is not.
    """
    logits = logits[:, :-1].astype(jnp.float32)
    own = jnp.take_along_axis(logits, text_tokens[:, 1:, None], axis=2)[..., 0]
    return jnp.sum(jax.nn.logsumexp(logits, axis=2) - own, axis=1, where=text_mask[:, 1:] > 0)


def token_mean(losses: Float[Array, "B"], text_mask: Shaped[Array, "B L"], mask: Float[Array, "B"]) -> Float[Array, ""]:
    """The texts' `next_token_losses` over the number of tokens predicted: every token of a batch weighs the same.

    So open_clip has it; in the paper a text weighs as its length. 0 without a token to predict.

    Args:
      mask: 1 for real examples, 0 for padding.
    """
    tokens = jnp.sum(text_mask[:, 1:] > 0, axis=1)
    return jnp.sum(losses, where=mask > 0) / jnp.maximum(jnp.sum(tokens, where=mask > 0), 1)

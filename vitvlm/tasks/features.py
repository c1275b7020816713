"""One vector per image from an encoder: what probes and neighbours read."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from vitvlm.models.outputs import EncoderOutput
from vitvlm.nn.pooling import masked_mean
from vitvlm.tasks.base import Batch, PredictFn, Variables

Encode = Callable[..., EncoderOutput]  # (variables, batch, **call)


def feature_fns(encode: Encode, encoder: nn.Module) -> dict[str, PredictFn]:
    """The predict functions of every task with an image encoder; each returns {"features": …}.

    features [B, E]: `pooled`, what a head reads (MAE, appendix A.1: CLS).
    token_mean [B, D]: the mean of the patch tokens.
    pooled_and_token_mean [B, E + D]: both, one after the other (Oquab et al. 2024, section 7: DINOv2's linear probe).
    block_0_cls, block_0_mean … [B, D]: after each block of an encoder of one width, before any final norm, the CLS
    token, where there is one, and the mean of the patch tokens.
    """
    after_blocks = {}
    for i in range(encoder.block_count):
        after_blocks[f"block_{i}_mean"] = functools.partial(_mean_after_block, encode, i)
        if encoder.has_cls:
            after_blocks[f"block_{i}_cls"] = functools.partial(_cls_after_block, encode, i)

    def features(variables: Variables, batch: Batch) -> dict[str, Array]:
        return {"features": encode(variables, batch).pooled}

    def token_mean(variables: Variables, batch: Batch) -> dict[str, Array]:
        output = encode(variables, batch)
        return {"features": _mean(output.tokens, output)}

    def pooled_and_token_mean(variables: Variables, batch: Batch) -> dict[str, Array]:
        output = encode(variables, batch)
        return {"features": jnp.concatenate([output.pooled, _mean(output.tokens, output)], axis=1)}

    return {
        "features": features,
        "token_mean": token_mean,
        "pooled_and_token_mean": pooled_and_token_mean,
        **after_blocks,
    }


def _mean_after_block(encode: Encode, block: int, variables: Variables, batch: Batch) -> dict[str, Array]:
    output = encode(variables, batch, capture=("hidden",))
    return {"features": _mean(output.hidden[block + 1, :, output.prefix.shape[1] :], output)}


def _mean(tokens: Float[Array, "B N D"], output: EncoderOutput) -> Float[Array, "B D"]:
    """The mean of the patch tokens that are the image's."""
    return tokens.mean(axis=1) if output.mask is None else masked_mean(tokens, output.mask)


def _cls_after_block(encode: Encode, block: int, variables: Variables, batch: Batch) -> dict[str, Array]:
    return {"features": encode(variables, batch, capture=("hidden",)).hidden[block + 1, :, 0]}

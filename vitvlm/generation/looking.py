"""Attention of written texts on images: the share that each word's tokens give each image."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vitvlm.core.config import ConfigError
from vitvlm.generation import sizes
from vitvlm.generation.loaded import Loaded
from vitvlm.generation.models import Answer, Prompts, language_model
from vitvlm.generation.prompts import INDEX, Inputs, padded, tokenizer_of
from vitvlm.generation.text import decoder
from vitvlm.models.vlm import VLM


def by_word(
    loaded: Loaded, prompt: Sequence[int], written: Sequence[int], inputs: Inputs, places: Sequence[int] = ()
) -> list[tuple[str, list[float]]]:
    """Words of a text with the share of attention on each image, mean over layers, heads and the word's tokens.

    It is the attention of the places that the tokens are predicted from: where image tokens stand among the text, the
    share of all that is looked at; where a model looks at images by cross-attention, of that, which is 1 together.

    Args:
      prompt: ids of one prompt; written: ids after it; inputs: what was read with the prompt, [1, …].
      places: of `Shown`, the tokens that each image takes, tiles together.

    Raises ConfigError without images, and as `check`.
    """
    check(loaded.model)
    if "images" not in inputs:
        raise ConfigError("attention: there is no image to look at: give --image")
    if not len(written):
        return []
    decode = decoder(tokenizer_of(loaded))
    model = language_model(loaded.model)
    answers = isinstance(model, Answer)
    before, said = list(written[:-1]), None
    if answers:
        given = padded([prompt], _room(len(prompt), loaded.model.max_positions), inputs)
        room = _room(len(written), loaded.model.max_positions)
        said = jnp.asarray([[loaded.model.start_id, *before, *[0] * (room - len(written))]], jnp.int32)
        places_of_text = slice(0, len(written))
    else:
        whole = [*prompt, *before]
        index = {INDEX: [[*inputs[INDEX][0], *[-1] * len(before)]]} if INDEX in inputs else {}
        given = padded([whole], _room(len(whole), loaded.model.length), {**inputs, **index})
        places_of_text = slice(-len(written), None)
    begun = given.tokens.shape[1] - len(before)
    weights = np.asarray(_weights(loaded.model, loaded.variables, given, said, begun))[places_of_text]
    if among_text(loaded.model):
        weights = weights[:, np.flatnonzero(np.asarray(given.inputs[INDEX])[0] >= 0)]
    else:
        images = jax.tree.leaves(given.inputs["images"])[0].shape[1]
        places = [weights.shape[1] // images] * images
    ends = np.cumsum(places)
    shares = np.stack([weights[:, end - count : end].sum(axis=1) for end, count in zip(ends, places)], axis=1)
    words = decode(written).split()
    of_tokens = [max(len(decode(written[: end + 1]).split()) - 1, 0) for end in range(len(written))]
    found = []
    for number, word in enumerate(words):
        tokens = [place for place, of in enumerate(of_tokens) if of == number]
        found.append((word, shares[tokens].mean(axis=0).tolist() if tokens else [0.0] * shares.shape[1]))
    return found


def check(model: nn.Module) -> None:
    """Raises ConfigError for a model whose text looks at no image, or at one through another text alone."""
    if not model.sees_images:
        raise ConfigError(f"attention: {type(model).__name__} sees no images: take a vision-language model's weights")
    if isinstance(language_model(model), Answer) and not isinstance(model, VLM):
        raise ConfigError("attention: this answer looks at its question, and only the question at the image")


def among_text(model: nn.Module) -> bool:
    """Tells whether image tokens stand among those of the text; if not, it looks at them by cross-attention."""
    return isinstance(model, VLM) and model.connector.fusion == "prefix"


def _room(count: int, positions: int | None) -> int:
    """Places for so many tokens, of few sizes, which programs are compiled for."""
    return sizes.fitting(count) if positions is None else min(sizes.fitting(count), positions)


@functools.partial(jax.jit, static_argnames="model")
def _weights(
    model: nn.Module, variables: Any, prompts: Prompts, said: Int[Array, "1 T"] | None, begun: Int[Array, ""] | int
) -> Float[Array, "T S"]:
    """Attention of every place of a text, or of an answer, to the prompt or to what cross-attention looks at."""
    call: dict[str, Any] = {"text_tokens": prompts.tokens, "mask": prompts.mask}
    if said is not None:
        call["decoder_tokens"] = said
    if model.prefix_lm:
        call["prefix_mask"] = jnp.arange(prompts.tokens.shape[1])[None] < begun
    output = model.apply(variables, **call, **prompts.inputs, capture=("attention",), logits="last")
    looks = said is not None or not among_text(model)
    return _mean(output.cross_attention if looks else output.attention)


def _mean(attention: Any) -> Float[Array, "L M"]:
    """The mean over layers and heads of the first text's weights."""
    layers = attention if isinstance(attention, tuple) else (attention,)
    every = [layer.astype(jnp.float32)[:, 0].mean(axis=1) for layer in layers]
    return jnp.concatenate(every).mean(axis=0)

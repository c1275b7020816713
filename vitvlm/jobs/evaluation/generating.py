"""The prediction function `generate` of models that write: the likeliest tokens after each example's prompt."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Int

from vitvlm.core.config import ConfigError
from vitvlm.generation import loop
from vitvlm.generation.choosing import Choosing, keys_of
from vitvlm.generation.models import Prompts, language_model
from vitvlm.generation.options import Options


def functions(model: nn.Module) -> Mapping[str, Any]:
    """Returns `generate` of a model that writes; nothing of any other."""
    return {} if model.writes is None else {"generate": functools.partial(generate, model)}


def generate(
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, Array],
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...] = (),
) -> dict[str, Array]:
    """Writes after prompts, the likeliest token at a time: ids int32 [B, max_new_tokens], -1 behind a stop token.

    A prompt is what stands before the first token that is learned; of an encoder-decoder, all that it encodes. Images
    are read with it, see `tasks.next_token`.

    Raises ConfigError for a model without room for the prompts and the new tokens.
    """
    answers = model.writes == "answer"
    prompts = _whole(model, batch) if answers else _before_the_answer(model, batch)
    L = prompts.tokens.shape[1]
    begun = 1 if answers else L
    room = begun + max_new_tokens
    if not answers and room > model.length:
        raise ConfigError(
            f"max_new_tokens: {max_new_tokens} after prompts of up to {L}; the model has {model.length} positions"
        )
    B = len(prompts.tokens)
    writer = language_model(model)
    choosing = Choosing.of(Options(), jnp.asarray(stop_ids, jnp.int32))
    keys = keys_of(0, [0] * B, 1)  # of draws, of which greedy choice makes none
    draft = loop.begin(writer, variables, prompts, jnp.arange(B), choosing, keys, room=room)
    draft = loop.go_on(writer, variables, draft, choosing, keys, jnp.int32(room))
    return {"ids": draft.ids[:, begun:room]}


def _whole(model: nn.Module, batch: Mapping[str, Array]) -> Prompts:
    return _prompts(model, batch, batch["text_tokens"], batch["text_mask"] > 0, batch.get("image_index"))


def _before_the_answer(model: nn.Module, batch: Mapping[str, Array]) -> Prompts:
    """Returns the tokens before the first that is learned, moved to the right, behind the padding."""
    learned, mask = batch["text_learned"] > 0, batch["text_mask"] > 0
    L = learned.shape[1]
    first = jnp.where(learned.any(axis=1), jnp.argmax(learned, axis=1), mask.sum(axis=1))
    place = jnp.arange(L) - (L - first[:, None])

    def moved(array: Int[Array, "B L"], nothing: int) -> Int[Array, "B L"]:
        return jnp.where(place >= 0, jnp.take_along_axis(array, jnp.maximum(place, 0), axis=1), nothing)

    index = batch.get("image_index")
    return _prompts(
        model, batch, moved(batch["text_tokens"], 0), place >= 0, None if index is None else moved(index, -1)
    )


def _prompts(
    model: nn.Module,
    batch: Mapping[str, Array],
    tokens: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    index: Int[Array, "B L"] | None,
) -> Prompts:
    if not model.sees_images:
        return Prompts(tokens, mask)
    images = batch["images"] if "images" in batch else batch["image"][:, None]
    given = {"images": images, "image_mask": batch.get("image_mask"), "image_index": index}
    given |= {name: batch[name] for name in model.reads if name in batch}
    return Prompts(tokens, mask, inputs={name: value for name, value in given.items() if value is not None})

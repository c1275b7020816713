"""The prediction function `generate` of models that write: the likeliest tokens after each example's prompt."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int

from vitvlm.core.config import ConfigError
from vitvlm.generation import loop
from vitvlm.generation.choosing import Choosing, keys_of
from vitvlm.generation.models import Prompts, language_model
from vitvlm.generation.options import Options
from vitvlm.tasks.base import images_in_texts


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
    among the text are read with it, as `tasks.next_token` reads them.

    Raises ConfigError for a model without room for the prompts and the new tokens.
    """
    L = batch["text_tokens"].shape[1]
    if model.writes != "answer" and L + max_new_tokens > model.length:
        raise ConfigError(
            f"max_new_tokens: {max_new_tokens} after prompts of up to {L}; the model has {model.length} positions"
        )
    answers = model.writes == "answer"
    prompts = _whole(model, batch) if answers else _before_the_answer(model, batch)
    B, begun = len(prompts.tokens), 1 if answers else L
    room = begun + max_new_tokens
    writer = language_model(model)
    choosing = Choosing.of(Options(), jnp.asarray(stop_ids, jnp.int32))
    keys = keys_of(0, [0] * B, 1)  # of draws, of which greedy choice makes none
    draft = loop.begin(writer, variables, prompts, jnp.arange(B), choosing, keys, room=room)
    draft = loop.go_on(writer, variables, draft, choosing, keys, jnp.int32(room))
    return {"ids": draft.ids[:, begun:room]}


def _whole(model: nn.Module, batch: Mapping[str, Array]) -> Prompts:
    index = {"image_index": batch["image_index"]} if "image_index" in batch else {}
    return Prompts(batch["text_tokens"], batch["text_mask"] > 0, inputs=_images(model, batch, index))


def _before_the_answer(model: nn.Module, batch: Mapping[str, Array]) -> Prompts:
    """Returns the tokens before the first that is learned, moved to the right, behind the padding."""
    learned, mask = batch["text_learned"] > 0, batch["text_mask"] > 0
    L = learned.shape[1]
    first = jnp.where(learned.any(axis=1), jnp.argmax(learned, axis=1), mask.sum(axis=1))
    place = jnp.arange(L) - (L - first[:, None])

    def moved(array: Int[Array, "B L *axes"], nothing: int) -> Int[Array, "B L *axes"]:
        there = place.reshape(*place.shape, *[1] * (array.ndim - 2))
        return jnp.where(there >= 0, jnp.take_along_axis(array, jnp.maximum(there, 0), axis=1), nothing)

    placed = {"image_index": ("image_index", -1), "text_positions": ("positions", 0)}
    own = {to: moved(batch[name], nothing) for name, (to, nothing) in placed.items() if name in batch}
    return Prompts(moved(batch["text_tokens"], 0), place >= 0, inputs=_images(model, batch, own))


def _images(model: nn.Module, batch: Mapping[str, Array], own: Mapping[str, Array]) -> dict[str, Any]:
    """The arguments of the model's call that are about images, with those about their places; none without images."""
    images = images_in_texts(batch) if model.sees_images else None
    if images is None:
        return {}
    names = ("image_mask", *model.reads)
    return {"images": images, **own} | {name: batch[name] for name in names if name in batch}

"""Writing texts after prompts with images: the images are a constant of the model that writes."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from vitvlm.generation import Options, Writer
from vitvlm.generation.models import Continuation, Memory


@dataclasses.dataclass(frozen=True, eq=False)
class Seeing(Continuation):
    """Continuation of prompts, one for each row of `images` [B, I, H, W, C]."""

    images: Array | None = None

    def read(self, variables, prompts, room, taken_back=0, cache=None):
        B, L = prompts.mask.shape
        mask = jnp.concatenate([prompts.mask, jnp.ones((B, room - L), bool)], axis=1)
        start = self.model.empty_cache(B, room, cache, taken_back)
        output = self.model.apply(variables, self.images, prompts.tokens, mask, cache=start, logits="last")
        return output.logits[:, 0], Memory(output.cache, mask, output.next_position)

    def go_on(self, variables, tokens, memory):
        positions = memory.position[:, None] + jnp.arange(tokens.shape[1])
        given = {"positions": positions, "cache": memory.cache}
        output = self.model.apply(variables, None, tokens, memory.mask, **given)
        return output.logits, memory.replace(cache=output.cache, position=positions[:, -1] + 1)


def written(loaded: Any, images: Array, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Returns the ids that are written after each prompt, stop tokens left out."""
    writer = Writer(loaded)
    writer.model = Seeing(loaded.model, jnp.asarray(images))
    return [list(text.ids) for texts in writer.write_ids(prompts, Options(**options)) for text in texts]

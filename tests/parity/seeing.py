"""Writing texts after prompts with images: the images are a constant of the model that writes."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from vitvlm.generation import Options, Writer
from vitvlm.generation.models import Continuation


@dataclasses.dataclass(frozen=True, eq=False)
class Seeing(Continuation):
    """Continuation of prompts, one for each row of `images` [B, I, H, W, C]."""

    images: Array | None = None

    def read(self, variables, prompts, room, taken_back=0, cache=None):
        return super().read(variables, prompts.replace(inputs={"images": self.images}), room, taken_back, cache)


def written(loaded: Any, images: Array, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Returns the ids that are written after each prompt, stop tokens left out."""
    writer = Writer(loaded)
    writer.model = Seeing(loaded.model, jnp.asarray(images))
    return [list(text.ids) for texts in writer.write_ids(prompts, Options(**options)) for text in texts]

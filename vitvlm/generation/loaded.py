"""Interfaces of what generation is given: a model with its weights, and a tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from flax import linen as nn
from PIL import Image

Messages = Sequence[Mapping[str, Any]]  # of a chat: "role" and "content" each
Picture = str | Path | bytes | Image.Image | np.ndarray  # a file, its bytes, or pixels, uint8 [H, W, C]


class Shown(NamedTuple):
    """Prompts with their images.

    Attributes:
      ids: of each prompt. inputs: what else the model reads with them, see `generation.models.Prompts`.
      places: for each prompt, how many tokens of its text each of its images takes.
    """

    ids: list[list[int]]
    inputs: dict[str, Any]
    places: list[tuple[int, ...]]


class Vocabulary(Protocol):
    """Tokens by themselves, see `data.tokenizers.base.Model`."""

    def decode(self, ids: list[list[int]]) -> list[str]: ...

    def id_of(self, token: str) -> int | None: ...


class Tokenizer(Protocol):
    """The part of `data.tokenizers.Tokenizer` that generation needs."""

    @property
    def model(self) -> Vocabulary: ...

    @property
    def eos_id(self) -> int | None: ...

    def token_id(self, token: str) -> int | None: ...

    def whole(self, texts: Sequence[str], add_eos: bool | None = None) -> list[list[int]]: ...


class Loaded(Protocol):
    """The part of `pretrained.Pretrained` that generation needs."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def variables(self) -> Mapping[str, Any]: ...

    @property
    def source(self) -> Mapping[str, Any]: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def with_images(
        self,
        prompts: Sequence[str | Messages],
        images: Sequence[Sequence[Picture]],
        names: Sequence[str] | None = None,
    ) -> Shown: ...

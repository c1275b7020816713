"""Interfaces of what generation is given: a model with its weights, and a tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from flax import linen as nn


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

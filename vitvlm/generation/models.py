"""Language models as generation sees them: one reads a prompt, then goes on token by token from what it remembers.

`Continuation` is of models that write on after the prompt, `Answer` of those that encode it and write a text of their
own. Generation knows nothing else of a model; a prompt may be given as embeddings, with images among them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vitvlm.core.config import ConfigError
from vitvlm.models.outputs import VLMOutput

Variables = Any


@flax.struct.dataclass
class Prompts:
    """Texts to go on from, padded on the left.

    Fields:
      tokens [B, L]: ids; mask [B, L]: False at padding.
      embeddings [B, L, D]: in place of the tokens' own; the ids are then only what has been said.
      inputs: what else the model's call is given as it reads them, by keyword, [B, …]: images, image_mask, or the
        context of a decoder that looks at one. Later calls know it from the cache alone.
    """

    tokens: Int[Array, "B L"]
    mask: Bool[Array, "B L"]
    embeddings: Float[Array, "B L D"] | None = None
    inputs: Mapping[str, Any] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class Memory:
    """State of a model that has read some texts.

    Fields:
      cache: keys and values by kind of attention, see `nn.caches`.
      mask [B, M]: False at padding, True at every place that is yet to be written.
      position [B]: of the next token; None where places serve (T5).
      context_mask [B, S]: False at padding of what cross-attention looks at; None without it.
    """

    cache: Any
    mask: Bool[Array, "B M"]
    position: Int[Array, "B"] | None = None
    context_mask: Bool[Array, "B S"] | None = None

    def of_rows(self, rows: Int[Array, "R"]) -> "Memory":
        """Memories of some texts, each as often as it is named: for samples of a prompt, and beams."""

        def take(leaf: Array) -> Array:  # [..., B, Kv, M, d]; the number of tokens is the same for all
            return leaf if leaf.ndim < 4 else jnp.take(leaf, rows, axis=leaf.ndim - 4)

        rest = jax.tree.map(lambda leaf: leaf[rows], self.replace(cache=None))
        return rest.replace(cache=jax.tree.map(take, self.cache))

    def taken_back(self, count: Int[Array, ""]) -> "Memory":
        """Forgets the last `count` tokens of every text."""

        def take(leaf: Array) -> Array:
            return leaf if leaf.ndim >= 4 else leaf - count

        position = None if self.position is None else self.position - count
        return self.replace(cache=jax.tree.map(take, self.cache), position=position)


class LanguageModel(Protocol):
    """Interface of a model that writes."""

    def said(self, prompts: Prompts) -> Int[Array, "B P"]:
        """The ids that the text begins with, -1 at padding."""

    def read(
        self, variables: Variables, prompts: Prompts, room: int, taken_back: int = 0, cache: DTypeLike | None = None
    ) -> tuple[Float[Array, "B V"], Memory]:
        """Reads prompts in one pass: logits of the next token, and the memory, with `room` places for the text."""

    def go_on(
        self, variables: Variables, tokens: Int[Array, "B n"], memory: Memory
    ) -> tuple[Float[Array, "B n V"], Memory]:
        """Reads n tokens more: logits of the token after each."""


@dataclasses.dataclass(frozen=True)
class Continuation:
    """A decoder, which writes on after the prompt; `model` is called as `models.decoder.Decoder`."""

    model: nn.Module

    def said(self, prompts: Prompts) -> Int[Array, "B P"]:
        return jnp.where(prompts.mask, prompts.tokens, -1)

    def read(self, variables, prompts, room, taken_back=0, cache=None):
        B, L = prompts.mask.shape
        mask = jnp.concatenate([prompts.mask, jnp.ones((B, room - L), bool)], axis=1)
        given = {"text_tokens": prompts.tokens} if prompts.embeddings is None else {"embeddings": prompts.embeddings}
        if not self.model.sees_images:  # which knows best what its images do to positions
            given["positions"] = jnp.maximum(jnp.cumsum(prompts.mask, axis=1) - 1, 0)
        if self.model.prefix_lm:
            given["prefix_mask"] = prompts.mask
        output = self.model.apply(
            variables,
            **given,
            mask=mask,
            cache=self.model.empty_cache(B, room, cache, taken_back),
            logits="last",
            **prompts.inputs,
        )
        position = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32)
        if isinstance(output, VLMOutput) and output.next_position is not None:
            mask, position = output.mask, output.next_position
        return _wide(output.logits[:, 0]), Memory(output.cache, mask, position)

    def go_on(self, variables, tokens, memory):
        positions = memory.position[:, None] + jnp.arange(tokens.shape[1])
        given = {"text_tokens": tokens, "mask": memory.mask, "positions": positions}
        output = self.model.apply(variables, **given, cache=memory.cache)
        return _wide(output.logits), memory.replace(cache=output.cache, position=positions[:, -1] + 1)


@dataclasses.dataclass(frozen=True)
class Answer:
    """An encoder-decoder, which encodes the prompt once and writes a text of its own; called as `models.t5.T5`."""

    model: nn.Module

    def said(self, prompts: Prompts) -> Int[Array, "B P"]:
        return jnp.full((len(prompts.mask), 1), self.model.start_id, jnp.int32)

    def read(self, variables, prompts, room, taken_back=0, cache=None):
        B = len(prompts.mask)
        mask = jnp.ones((B, room), bool)
        given = {"text_tokens": prompts.tokens} if prompts.embeddings is None else {"embeddings": prompts.embeddings}
        output = self.model.apply(
            variables,
            **given,
            mask=prompts.mask,
            decoder_tokens=self.said(prompts),
            decoder_mask=mask,
            cache=self.model.empty_cache(B, room, cache),
            logits="last",
            **prompts.inputs,
        )
        context_mask = prompts.mask
        if isinstance(output, VLMOutput) and output.mask is not None:
            context_mask = output.mask
        return _wide(output.logits[:, 0]), Memory(output.cache, mask, context_mask=context_mask)

    def go_on(self, variables, tokens, memory):
        output = self.model.apply(
            variables,
            mask=memory.context_mask,
            decoder_tokens=tokens,
            decoder_mask=memory.mask,
            cache=memory.cache,
        )
        return _wide(output.logits), memory.replace(cache=output.cache)


def _wide(logits: Float[Array, "*B V"]) -> Float[Array, "*B V"]:
    return logits.astype(jnp.float32)


KINDS = {"continuation": Continuation, "answer": Answer}


def language_model(model: nn.Module) -> LanguageModel:
    """Returns the interface to a model, by its `writes` (see `models.facts`). Raises ConfigError if it does not."""
    if model.writes not in KINDS:
        raise ConfigError(f"{type(model).__name__} writes no text: give the weights of a language model")
    return KINDS[model.writes](model)

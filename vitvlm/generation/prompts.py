"""Prompts as ids: a model's tokenizer, what ends its texts, and batches of prompts of different lengths."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.generation.loaded import Loaded, Tokenizer
from vitvlm.generation.models import Prompts


def tokenizer_of(loaded: Loaded) -> Tokenizer:
    """Returns the model's tokenizer. Raises ConfigError if it has none."""
    if loaded.tokenizer is None:
        raise ConfigError(f"{loaded.source.get('path', 'the model')}: has no tokenizer, so it reads no texts")
    return loaded.tokenizer


def stop_ids_of(loaded: Loaded) -> tuple[int, ...]:
    """The tokens that end a text by the model's own files: generation_config.json, config.json, the tokenizer."""
    for name in ("generation", "config"):
        found = (loaded.source.get(name) or {}).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, Sequence) else (int(found),)
    tokenizer = loaded.tokenizer
    return () if tokenizer is None or tokenizer.eos_id is None else (tokenizer.eos_id,)


def ids_of(loaded: Loaded, prompts: Sequence[str], add_eos: bool | None) -> list[list[int]]:
    """Prompts as the model begins with them.

    Args:
      add_eos: see `Tokenizer.whole`.

    Raises ConfigError for an empty prompt.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts are a sequence of texts: write [{prompts[:20]!r}]")
    for i, prompt in enumerate(prompts):
        if prompt == "":
            raise ConfigError(f"prompt {i} is empty: give it a text to go on from")
    return tokenizer_of(loaded).whole(prompts, add_eos=add_eos)


def check_ids(loaded: Loaded, ids: Sequence[int], where: str) -> None:
    """Raises ConfigError for no ids, or ids that the model does not have."""
    if not len(ids):
        raise ConfigError(f"{where} is empty: it has no tokens")
    count = loaded.model.vocab_size
    if not 0 <= min(ids) <= max(ids) < count:
        raise ConfigError(
            f"{where} has ids from {min(ids)} to {max(ids)}, the model's are 0 to {count - 1}: "
            "is the tokenizer another model's?"
        )


def padded(prompts: Sequence[Sequence[int]], length: int) -> Prompts:
    """Prompts of different lengths in one array, padded on the left."""
    tokens, mask = np.zeros((len(prompts), length), np.int32), np.zeros((len(prompts), length), bool)
    for row, ids in enumerate(prompts):
        tokens[row, length - len(ids) :] = ids
        mask[row, length - len(ids) :] = True
    return Prompts(jnp.asarray(tokens), jnp.asarray(mask))

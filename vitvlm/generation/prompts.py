"""Prompts as ids: a model's tokenizer, what ends its texts, and batches of prompts of different lengths."""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError
from vitvlm.generation.loaded import Loaded, Tokenizer
from vitvlm.generation.models import Answer, LanguageModel, Prompts

Inputs = Mapping[str, Any]  # see `models.Prompts`
NOTHING: Inputs = types.MappingProxyType({})
INDEX = "image_index"  # a row of it ends where its prompt does


def tokenizer_of(loaded: Loaded) -> Tokenizer:
    """Returns the model's tokenizer. Raises ConfigError if it has none."""
    if loaded.tokenizer is None:
        raise ConfigError(f"{loaded.source.get('path', 'the model')}: has no tokenizer, so it reads no texts")
    return loaded.tokenizer


def stop_ids_of(loaded: Loaded) -> tuple[int, ...]:
    """The tokens that end a text: the model's, or those of its generation_config.json, config.json or tokenizer."""
    if loaded.model.stop_ids:
        return loaded.model.stop_ids
    for name in ("generation", "config"):
        found = (loaded.source.get(name) or {}).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, Sequence) else (int(found),)
    tokenizer = loaded.tokenizer
    return () if tokenizer is None or tokenizer.eos_id is None else (tokenizer.eos_id,)


def ids_of(loaded: Loaded, prompts: Sequence[str], add_eos: bool | None) -> list[list[int]]:
    """Prompts as the model begins with them; see `begun`.

    Args:
      add_eos: see `Tokenizer.whole`.

    Raises ConfigError for an empty prompt, unless the model has a token of its own to begin with.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts are a sequence of texts: write [{prompts[:20]!r}]")
    for i, prompt in enumerate(prompts):
        if prompt == "" and not _has_start(loaded):
            raise ConfigError(f"prompt {i} is empty: give it a text to go on from")
    return begun(loaded, tokenizer_of(loaded).whole(prompts, add_eos=add_eos))


def begun(loaded: Loaded, ids: Sequence[list[int]]) -> list[list[int]]:
    """Texts with the token that the model's begin with in place of the tokenizer's BOS, where it has one of its own."""
    if not _has_start(loaded):
        return list(ids)
    before = len(_bos(tokenizer_of(loaded)))
    return [[loaded.model.start_id, *text[before:]] for text in ids]


def _has_start(loaded: Loaded) -> bool:
    return loaded.model.writes == "continuation" and loaded.model.start_id is not None


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


def check_inputs(loaded: Loaded, inputs: Inputs, count: int) -> None:
    """Raises ConfigError for inputs of another number of texts, and without an image that the model needs."""
    lengths = {name: len(jax.tree.leaves(value)[0] if name == "images" else value) for name, value in inputs.items()}
    if wrong := [name for name, length in lengths.items() if length != count]:
        raise ConfigError(f"{wrong[0]}: {lengths[wrong[0]]} for {count} texts: give one for each")
    if loaded.model.needs_image and "images" not in inputs:
        raise ConfigError(f"images: {type(loaded.model).__name__} writes about an image: give one for each text")


def padded(prompts: Sequence[Sequence[int]], length: int, inputs: Inputs = NOTHING) -> Prompts:
    """Prompts of different lengths in one array, padded on the left, and so is their `image_index`."""
    tokens, mask = np.zeros((len(prompts), length), np.int32), np.zeros((len(prompts), length), bool)
    for row, ids in enumerate(prompts):
        tokens[row, length - len(ids) :] = ids
        mask[row, length - len(ids) :] = True
    given = {name: jax.tree.map(jnp.asarray, value) for name, value in inputs.items() if name != INDEX}
    if INDEX in inputs:
        index = np.full((len(prompts), length), -1, np.int32)
        for row, each in enumerate(inputs[INDEX]):
            index[row, length - len(each) :] = each
        given[INDEX] = jnp.asarray(index)
    return Prompts(jnp.asarray(tokens), jnp.asarray(mask), inputs=given)


def answers_of(prompts: Sequence[str], answers: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
    """A list of answers for each prompt. Raises ConfigError for none, and for another number of lists than prompts."""
    shared = all(isinstance(each, str) for each in answers)
    of_prompts = [list(answers)] * len(prompts) if shared else [list(each) for each in answers]
    if len(of_prompts) != len(prompts):
        raise ConfigError(f"{len(of_prompts)} lists of answers for {len(prompts)} prompts: give one for each")
    for i, each in enumerate(of_prompts):
        if not each:
            raise ConfigError(f"prompt {i} has no answers to choose from")
    return of_prompts


def contents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts without BOS and EOS."""
    return [ids[len(_bos(tokenizer)) :] for ids in tokenizer.whole(texts, add_eos=False)]


def _bos(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.whole([""], add_eos=False)[0]


def behind(loaded: Loaded, prompt: str, ids: Sequence[int], answer: str, model: LanguageModel) -> tuple[int, ...]:
    """Ids of an answer as it stands behind a prompt that has these ids; cut apart from it where the two share a token.

    Raises ConfigError for an answer that is empty.
    """
    if answer == "":
        raise ConfigError("an answer is empty: give it a text")
    if not isinstance(model, Answer):
        (whole,) = begun(loaded, tokenizer_of(loaded).whole([prompt + answer], add_eos=False))
        if whole[: len(ids)] == list(ids) and len(whole) > len(ids):
            return tuple(whole[len(ids) :])
    return tuple(contents(tokenizer_of(loaded), [answer])[0])


def in_one(answers: Sequence[Sequence[Sequence[int]]]) -> Int[np.ndarray, "B A T"]:
    """Answers to each prompt in one array, padded with -1."""
    count, longest = max(map(len, answers)), max(len(one) for each in answers for one in each)
    array = np.full((len(answers), count, longest), -1, np.int32)
    for row, each in enumerate(answers):
        for i, one in enumerate(each):
            array[row, i, : len(one)] = one
    return array

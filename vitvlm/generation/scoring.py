"""Likelihoods of texts: `score(loaded, ["A cat sat."])`, and the likeliest of several answers."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitvlm.core.config import ConfigError, suggest
from vitvlm.generation import sizes
from vitvlm.generation.loaded import Loaded
from vitvlm.generation.models import Answer, LanguageModel, Variables, language_model
from vitvlm.generation.prompts import (
    NOTHING,
    answers_of,
    begun,
    check_ids,
    check_inputs,
    contents,
    stop_ids_of,
    tokenizer_of,
)
from vitvlm.objectives.next_token import cross_entropy

TOKENS = 2048  # of a batch, padding included
NORMALIZATIONS = ("none", "tokens", "characters")


@dataclasses.dataclass(frozen=True)
class Scored:
    """Log-likelihood of a text.

    Attributes:
      ids: its tokens that have others before them: without BOS, and in a model without one without the first.
      log_probs: log p(token | those before it, the prefix included), natural logarithm, one for each of the ids.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]

    @property
    def total(self) -> float:
        """The text's log-likelihood."""
        return math.fsum(self.log_probs)

    @property
    def mean(self) -> float:
        """The text's log-likelihood per token."""
        return self.total / len(self.log_probs)


def score(
    loaded: Loaded,
    texts: Sequence[str],
    prefixes: Sequence[str] | None = None,
    end: bool = False,
    inputs: Mapping[str, Any] = NOTHING,
) -> list[Scored]:
    """Log-probabilities of the tokens of texts, each given those before it.

    Texts of about the same length go through the model together; padding changes nothing, and logits of the whole
    vocabulary are never held for all tokens.

    Args:
      loaded: a model with its weights and tokenizer, as `pretrained.load` returns it.
      prefixes: what stands before each text and is not scored (an encoder-decoder encodes it; it needs one). A text and
        its prefix are cut into tokens together, and a token that has parts of both is scored.
      end: whether the model's first stop token is scored behind each text.
      inputs: what else the model reads with each text, such as images [texts, I, H, W, C]; see `models.Prompts`.

    Raises ConfigError for a model that writes no text or has no tokenizer, for a text that is empty, or has more tokens
    than the model positions, and for another number of prefixes than of texts.
    """
    tokenizer, model = tokenizer_of(loaded), language_model(loaded.model)
    if isinstance(texts, str):
        raise TypeError(f"texts are a sequence of strings: write [{texts[:20]!r}]")
    if prefixes is not None and len(prefixes) != len(texts):
        raise ConfigError(f"{len(prefixes)} prefixes for {len(texts)} texts: give one for each")
    for i, text in enumerate(texts):
        if text == "":
            raise ConfigError(f"text {i} is empty: there is nothing to score")
    last: tuple[int, ...] = ()
    if end and not (last := stop_ids_of(loaded)[:1]):
        raise ConfigError("end: the model's files name no token that ends a text")
    if isinstance(model, Answer):
        if prefixes is None:
            raise ConfigError("prefixes: an encoder-decoder writes about another text; give one for each")
        encoded = tokenizer.whole(prefixes)
        rows = [
            _Row([model.model.start_id, *ids, *last], 1, tuple(before))
            for ids, before in zip(contents(tokenizer, texts), encoded)
        ]
    else:
        rows = [_Row([*ids, *last], max(begun, 1)) for ids, begun in _joined(loaded, texts, prefixes)]
    return score_ids(loaded, rows, inputs)


def choose(
    loaded: Loaded,
    prompts: Sequence[str],
    answers: Sequence[str] | Sequence[Sequence[str]],
    normalize: str = "none",
    inputs: Mapping[str, Any] = NOTHING,
) -> list[tuple[int, list[Scored]]]:
    """The likeliest of several answers to each prompt: its index, and the likelihoods of all.

    Args:
      answers: for all prompts, or a list for each. An answer stands behind the prompt as it is: where a space belongs
        between the two, it begins with one.
      normalize: "none" compares log p(answer | prompt), "tokens" that divided by the number of the answer's tokens,
        "characters" by that of its characters.
      inputs: what else the model reads with each prompt, such as images [prompts, I, H, W, C].

    Raises ConfigError as `score` does, for an unknown `normalize`, and for a prompt without answers.
    """
    if normalize not in NORMALIZATIONS:
        raise ConfigError(f"normalize: {normalize!r}; {suggest(normalize, NORMALIZATIONS)}")
    of_prompts = answers_of(prompts, answers)
    pairs = [(prompt, answer) for prompt, each in zip(prompts, of_prompts) for answer in each]
    which = np.repeat(np.arange(len(prompts)), [len(each) for each in of_prompts])
    given = {name: np.asarray(value)[which] for name, value in inputs.items()}
    scored = iter(score(loaded, [answer for _, answer in pairs], [prompt for prompt, _ in pairs], inputs=given))
    chosen = []
    for each in of_prompts:
        of_answers = [next(scored) for _ in each]
        lengths = {
            "none": [1] * len(each),
            "tokens": [len(one.ids) for one in of_answers],
            "characters": [len(answer) for answer in each],
        }[normalize]
        values = [one.total / length for one, length in zip(of_answers, lengths)]
        chosen.append((int(np.argmax(values)), of_answers))
    return chosen


@dataclasses.dataclass(frozen=True)
class _Row:
    """Ids of which those from `begun` on are scored, and what an encoder is given."""

    ids: Sequence[int]
    begun: int
    encoded: tuple[int, ...] = ()


def score_ids(loaded: Loaded, rows: Sequence[_Row], inputs: Mapping[str, Any] = NOTHING) -> list[Scored]:
    """Scores rows of ids, in batches of about the same length."""
    model = language_model(loaded.model)
    check_inputs(loaded, inputs, len(rows))
    inputs = {name: np.asarray(value) for name, value in inputs.items()}
    for i, row in enumerate(rows):
        check_ids(loaded, row.ids, f"text {i}")
        if not isinstance(model, Answer) and len(row.ids) - 1 > loaded.model.length:
            raise ConfigError(f"text {i} has {len(row.ids)} tokens; the model has {loaded.model.length} positions")
        if len(row.ids) <= row.begun:
            raise ConfigError(f"text {i} is one token, and nothing stands before it: there is nothing to score")
    found: dict[int, Scored] = {}
    waiting = sorted(range(len(rows)), key=lambda i: (len(rows[i].encoded), len(rows[i].ids)), reverse=True)
    while waiting:
        length = sizes.fitting(max(len(rows[i].ids) for i in waiting))
        if not isinstance(model, Answer):
            length = min(length, loaded.model.length + 1)
        count = max(1, min(TOKENS // length, 2 ** math.ceil(math.log2(len(waiting)))))
        batch, waiting = waiting[:count], waiting[count:]
        here = np.resize(batch, count)  # what fills a batch up is given some text's
        given = {name: value[here] for name, value in inputs.items()}
        log_probs = _log_probs_of(loaded, model, [rows[i] for i in batch], length, count, given)
        for i, values in zip(batch, log_probs):
            row = rows[i]
            values = values[row.begun - 1 : len(row.ids) - 1]
            found[i] = Scored(tuple(row.ids[row.begun :]), tuple(values.tolist()))
    return [found[i] for i in range(len(rows))]


def _log_probs_of(
    loaded: Loaded,
    model: LanguageModel,
    rows: Sequence[_Row],
    length: int,
    count: int,
    inputs: Mapping[str, Any],
) -> Float[np.ndarray, "B L"]:
    """Log-probabilities of the ids from the second on of `count` rows, the missing ones padding."""
    ids, mask = np.zeros((count, length), np.int32), np.zeros((count, length), bool)
    widest = sizes.fitting(max(len(row.encoded) for row in rows))
    encoded, encoded_mask = np.zeros((count, widest), np.int32), np.zeros((count, widest), bool)
    mask[:, 0] = encoded_mask[:, 0] = True  # of rows that are padding too, which would otherwise see nothing
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)], mask[i, : len(row.ids)] = row.ids, True
        encoded[i, : len(row.encoded)], encoded_mask[i, : len(row.encoded)] = row.encoded, True
    given = (encoded, encoded_mask) if isinstance(model, Answer) else None
    return np.asarray(_log_probs(model, loaded.variables, ids, mask, given, inputs))


@functools.partial(jax.jit, static_argnames=("model",))
def _log_probs(
    model: LanguageModel,
    variables: Variables,
    ids: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    given: tuple[Int[Array, "B S"], Bool[Array, "B S"]] | None,
    inputs: Mapping[str, Array],
) -> Float[Array, "B _L"]:
    tokens, real = ids[:, :-1], mask[:, :-1]
    if given is None:
        call = {"text_tokens": tokens, "mask": real}
    else:
        call = {"text_tokens": given[0], "mask": given[1], "decoder_tokens": tokens, "decoder_mask": real}
    output = model.model.apply(variables, **call, logits="none", **inputs)
    return -cross_entropy(
        output.tokens,
        output.head_kernel,
        ids[:, 1:],
        output.head_bias,
        scale=output.logit_scale,
        soft_cap=output.logit_soft_cap,
    )


def _joined(loaded: Loaded, texts: Sequence[str], prefixes: Sequence[str] | None) -> list[tuple[list[int], int]]:
    """Ids of each prefix and text together, and where the first token is that is not of the prefix alone."""
    tokenizer = tokenizer_of(loaded)
    if prefixes is None:
        prefixes = [""] * len(texts)
    whole = begun(loaded, tokenizer.whole([prefix + text for prefix, text in zip(prefixes, texts)], add_eos=False))
    alone = begun(loaded, tokenizer.whole(prefixes, add_eos=False))
    return [(ids, _shared(ids, before)) for ids, before in zip(whole, alone)]


def _shared(ids: Sequence[int], others: Sequence[int]) -> int:
    """Counts the ids at the beginning that two rows share."""
    return next((i for i, (a, b) in enumerate(zip(ids, others)) if a != b), min(len(ids), len(others)))

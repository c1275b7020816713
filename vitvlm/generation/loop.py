"""The loop that writes token by token, compiled: some steps at a time, so that the host can stream and stop texts."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from vitvlm.generation.choosing import Choosing
from vitvlm.generation.models import LanguageModel, Memory, Prompts, Variables


@flax.struct.dataclass
class Draft:
    """Texts while they are written.

    Fields:
      memory: what the model has read: all but the last token.
      ids [B, M]: by places, -1 at padding, at what is not yet written and behind a text's end; stop tokens included.
      begun, place: the first place after the prompt, and the next to write; the same for all texts.
      done [B]: which texts have ended.
      log_probs [B, M]: of each token by the model alone, before anything is done to its logits; None unless kept.
      passes: through the model, that of the prompts included.
    """

    memory: Memory
    ids: Int[Array, "B M"]
    begun: Int[Array, ""]
    place: Int[Array, ""]
    done: Bool[Array, "B"]
    log_probs: Float[Array, "B M"] | None
    passes: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("model", "room", "taken_back", "cache", "log_probs"))
def begin(
    model: LanguageModel,
    variables: Variables,
    prompts: Prompts,
    rows: Int[Array, "B"],
    choosing: Choosing,
    keys: Key[Array, "B"],
    *,
    room: int,
    taken_back: int = 0,
    cache: DTypeLike | None = None,
    log_probs: bool = False,
) -> Draft:
    """Reads the prompts and writes the first token of each text.

    Args:
      rows: the prompt of each text: a prompt is read once, however many samples it has.
      room: places of the text, the prompt included where it is part of it.
      taken_back: how many of the last tokens the cache must be able to take back; cache: dtype of keys and values.
    """
    logits, memory = model.read(variables, prompts, room, taken_back, cache)
    logits, memory = logits[rows], memory.of_rows(rows)
    said = model.said(prompts)[rows]
    ids = jnp.pad(said, [(0, 0), (0, room - said.shape[1])], constant_values=-1)
    draft = Draft(
        memory=memory,
        ids=ids,
        begun=jnp.int32(said.shape[1]),
        place=jnp.int32(said.shape[1]),
        done=jnp.zeros(len(rows), bool),
        log_probs=jnp.zeros(ids.shape, jnp.float32) if log_probs else None,
        passes=jnp.int32(1),
    )
    return _write(draft, logits, choosing, keys)


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("draft",))
def go_on(
    model: LanguageModel,
    variables: Variables,
    draft: Draft,
    choosing: Choosing,
    keys: Key[Array, "B"],
    end: Int[Array, ""],
) -> Draft:
    """Writes on up to place `end`, or until all texts have ended."""

    def unfinished(draft: Draft) -> Bool[Array, ""]:
        return (draft.place < end) & ~draft.done.all()

    def step(draft: Draft) -> Draft:
        logits, memory = model.go_on(variables, last_tokens(draft), draft.memory)
        draft = draft.replace(memory=memory, passes=draft.passes + 1)
        return _write(draft, logits[:, 0], choosing, keys)

    return jax.lax.while_loop(unfinished, step, draft)


@functools.partial(jax.jit, static_argnames=("model", "count", "ngram"), donate_argnames=("draft",))
def speculate(
    model: LanguageModel,
    variables: Variables,
    draft: Draft,
    choosing: Choosing,
    keys: Key[Array, "B"],
    end: Int[Array, ""],
    *,
    count: int,
    ngram: int,
) -> Draft:
    """Writes on as `go_on` does, `count` copied tokens at a time, up to `count` places or fewer before `end`.

    What followed the last tokens where the text had them before is read in one pass, and kept as far as it is what the
    model itself chooses; all texts go on by as many tokens as the one with the fewest (prompt lookup, Saxena 2023).
    """

    def unfinished(draft: Draft) -> Bool[Array, ""]:
        return (draft.place + count < end) & ~draft.done.all()

    def step(draft: Draft) -> Draft:
        place = draft.place
        copied = looked_up(draft.ids, place, count, ngram)
        tokens = jnp.concatenate([last_tokens(draft), copied], axis=1)
        logits, memory = model.go_on(variables, tokens, draft.memory)
        agrees, kept, done = jnp.ones(len(copied), bool), jnp.zeros(len(copied), jnp.int32), [draft.done]
        for i in range(count + 1):
            draft = _write(draft, logits[:, i], choosing, keys)
            kept, done = kept + agrees, [*done, draft.done]
            if i < count:
                written = jax.lax.dynamic_index_in_dim(draft.ids, place + i, axis=1, keepdims=False)
                agrees &= (written == copied[:, i]) | draft.done
        kept = kept.min()
        return draft.replace(
            memory=memory.taken_back(count + 1 - kept),
            ids=jnp.where(jnp.arange(draft.ids.shape[1]) < place + kept, draft.ids, -1),
            place=place + kept,
            done=jnp.stack(done)[kept],
            passes=draft.passes + 1,
        )

    return jax.lax.while_loop(unfinished, step, draft)


def looked_up(ids: Int[Array, "B M"], place: Int[Array, ""], count: int, ngram: int) -> Int[Array, "B count"]:
    """Returns what followed the last tokens where they stood before: of the longest match, up to `ngram`, the latest.

    Where less than `count` followed, it is repeated; without a match, the last token is.
    """
    M = ids.shape[1]

    def of_text(ids: Int[Array, "M"]) -> Int[Array, "count"]:
        start = place - 1
        for n in range(1, ngram + 1):
            last = jax.lax.dynamic_slice(ids, (place - n,), (n,))
            padded = jnp.pad(ids, (0, n), constant_values=-1)
            found = [(padded[i : i + M] == last[i]) & (last[i] >= 0) for i in range(n)]
            there = jnp.all(jnp.stack(found), axis=0) & (jnp.arange(M) + n < place) & (place >= n)
            latest = jnp.max(jnp.where(there, jnp.arange(M), -1))
            start = jnp.where(latest >= 0, latest + n, start)
        return jnp.maximum(ids[start + jnp.arange(count) % (place - start)], 0)

    return jax.vmap(of_text)(ids)


def last_tokens(draft: Draft) -> Int[Array, "B 1"]:
    """The last token of each text; of those that have ended any."""
    return jnp.maximum(jax.lax.dynamic_slice_in_dim(draft.ids, draft.place - 1, 1, axis=1), 0)


def log_probs_of(logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Log-probabilities of tokens by their logits."""
    own = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return own - jax.nn.logsumexp(logits, axis=-1)


def _write(draft: Draft, logits: Float[Array, "B V"], choosing: Choosing, keys: Key[Array, "B"]) -> Draft:
    """Chooses a token for each text that has not ended."""
    step = draft.place - draft.begun
    keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
    tokens = choosing.choose(choosing.processed(logits, draft.ids, draft.begun, draft.place), keys)
    written = jnp.where(draft.done, -1, tokens)
    log_probs = draft.log_probs
    if log_probs is not None:
        log_probs = _put(log_probs, log_probs_of(logits, tokens)[:, None], draft.place)
    return draft.replace(
        ids=_put(draft.ids, written[:, None], draft.place),
        place=draft.place + 1,
        done=draft.done | choosing.stops(tokens),
        log_probs=log_probs,
    )


def _put(kept: Array, new: Array, place: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_update_slice(kept, new, (0, place))

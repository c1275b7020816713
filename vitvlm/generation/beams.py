"""Beam search, with hypotheses kept and ended as `transformers` does it, all of it one compiled loop."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vitvlm.generation.choosing import Choosing
from vitvlm.generation.models import LanguageModel, Memory, Prompts, Variables

NEVER = -1e9  # the score of a hypothesis that is not there: `transformers` adds it, so sums of it occur
Scores = Float[Array, "B beams"]


@flax.struct.dataclass
class Beams:
    """Hypotheses of each prompt, the best first.

    Fields:
      memory: what the model has read of the running ones, [B * beams] rows.
      running [B, beams, M], finished [B, beams, M]: ids by places, -1 at padding and behind the end.
      running_scores: sums of log-probabilities; finished_scores: divided by tokens^length_penalty; NEVER: none yet.
      open [B]: whether a running one might still surpass the finished ones.
      going: whether the search goes on.
    """

    memory: Memory
    running: Int[Array, "B beams M"]
    running_scores: Scores
    finished: Int[Array, "B beams M"]
    finished_scores: Scores
    is_finished: Bool[Array, "B beams"]
    open: Bool[Array, "B"]
    begun: Int[Array, ""]
    place: Int[Array, ""]
    going: Bool[Array, ""]
    passes: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("model", "room", "beams", "early_stopping", "cache"))
def search(
    model: LanguageModel,
    variables: Variables,
    prompts: Prompts,
    choosing: Choosing,
    end: Int[Array, ""],
    length_penalty: Float[Array, ""],
    *,
    room: int,
    beams: int,
    early_stopping: bool | str,
    cache: DTypeLike | None = None,
) -> Beams:
    """Searches up to place `end`; the finished hypotheses are the results, the best first.

    Args:
      room: places of the text, the prompt included where it is part of it.
      early_stopping: see `options.Options`.
    """
    logits, memory = model.read(variables, prompts, room, cache=cache)
    B = len(logits)
    rows = jnp.repeat(jnp.arange(B), beams)
    said = model.said(prompts)
    ids = jnp.pad(said, [(0, 0), (0, room - said.shape[1])], constant_values=-1)
    ids = jnp.broadcast_to(ids[:, None], (B, beams, room))
    choosing = choosing if choosing.answers is None else choosing.replace(answers=choosing.answers[rows])
    ends = functools.partial(_ends, choosing, end, length_penalty, early_stopping)
    state = Beams(
        memory=memory.of_rows(rows),
        running=ids,
        running_scores=jnp.full((B, beams), NEVER).at[:, 0].set(0.0),  # at first all are the same
        finished=ids,
        finished_scores=jnp.full((B, beams), NEVER),
        is_finished=jnp.zeros((B, beams), bool),
        open=jnp.ones(B, bool),
        begun=jnp.int32(said.shape[1]),
        place=jnp.int32(said.shape[1]),
        going=jnp.bool_(True),
        passes=jnp.int32(1),
    )

    def step(state: Beams) -> Beams:
        last = jax.lax.dynamic_index_in_dim(state.running, state.place - 1, axis=2, keepdims=False)
        logits, memory = model.go_on(variables, last.reshape(-1, 1), state.memory)
        state = state.replace(memory=memory, passes=state.passes + 1)
        return _advance(state, logits[:, 0], choosing, ends)

    first = _advance(state, logits[rows], choosing, ends)
    return jax.lax.while_loop(lambda state: state.going, step, first)


def _advance(state: Beams, logits: Float[Array, "R V"], choosing: Choosing, ends) -> Beams:
    """Writes one token to every hypothesis."""
    B, beams, M = state.running.shape
    log_probs = jax.nn.log_softmax(logits)
    log_probs = choosing.processed(log_probs, state.running.reshape(B * beams, M), state.begun, state.place)
    V = log_probs.shape[1]
    totals = (log_probs.reshape(B, beams, V) + state.running_scores[:, :, None]).reshape(B, beams * V)
    # As many more as there are stop tokens, so that enough are left that go on.
    kept = max(2, 1 + len(choosing.stop_ids)) * beams
    scores, found = jax.lax.top_k(totals, kept)
    parents, tokens = found // V, found % V
    ids = jnp.take_along_axis(state.running, parents[:, :, None], axis=1)
    ids = jax.lax.dynamic_update_slice(ids, tokens[:, :, None].astype(jnp.int32), (0, 0, state.place))

    stopped, normalize, improves, done = ends(state, tokens)
    next_scores, best = jax.lax.top_k(scores + stopped * NEVER, beams)
    rows = (jnp.arange(B)[:, None] * beams + _of(parents, best)).reshape(-1)

    # Only the first `beams` candidates may be results: the others are there to go on.
    finishing = stopped & (jnp.arange(kept) < beams)
    of_candidates = normalize(scores, state.place + 1)
    of_candidates += (state.is_finished.all(axis=1, keepdims=True) & done) * NEVER
    of_candidates += ~state.open[:, None] * NEVER
    of_candidates += ~finishing * NEVER
    finished_scores, chosen = jax.lax.top_k(jnp.concatenate([state.finished_scores, of_candidates], axis=1), beams)
    state = state.replace(
        memory=state.memory.of_rows(rows),
        running=_of(ids, best),
        running_scores=next_scores,
        finished=_of(jnp.concatenate([state.finished, ids], axis=1), chosen),
        finished_scores=finished_scores,
        is_finished=_of(jnp.concatenate([state.is_finished, finishing], axis=1), chosen),
        place=state.place + 1,
    )
    still_open = state.open & improves(state)
    ended = ~still_open.any() | (state.is_finished.all() & done) | stopped.all()
    return state.replace(open=still_open, going=~ended)


def _ends(
    choosing: Choosing,
    end: Int[Array, ""],
    length_penalty: Float[Array, ""],
    early_stopping: bool | str,
    state: Beams,
    tokens: Int[Array, "B kept"],
):
    """Returns the rules by which hypotheses and searches end.

    These are: which candidates end here, by a stop token or at the last place; a function that divides scores by their
    length; one that tells which prompts have a running hypothesis that may surpass the finished ones; and whether a
    prompt is done with all its hypotheses finished.
    """
    stopped = choosing.stops(tokens) | (state.place + 1 >= end)

    def normalize(scores: Scores, place: Int[Array, ""]) -> Scores:
        return scores / (place - state.begun).astype(jnp.float32) ** length_penalty

    def improves(state: Beams) -> Bool[Array, "B"]:
        place = state.place
        if early_stopping == "never":  # a longer text has a better score at best, if length is rewarded
            place = jnp.where(length_penalty > 0, end, place)
        best = normalize(state.running_scores[:, :1], place)
        worst = jnp.where(state.is_finished, state.finished_scores.min(axis=1, keepdims=True), NEVER)
        return (best > worst).any(axis=1)

    return stopped, normalize, improves, early_stopping is True


def _of(values: Array, chosen: Int[Array, "B n"]) -> Array:
    return jnp.take_along_axis(values, chosen.reshape(*chosen.shape, *[1] * (values.ndim - 2)), axis=1)

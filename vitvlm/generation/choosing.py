"""Choice of the next token: what is done to its logits, in the order of `transformers`' generate, and the draw."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vitvlm.generation.options import Options


@flax.struct.dataclass
class Choosing:
    """Rules by which tokens are chosen; their numbers may change without another compilation, None does nothing.

    Fields: those of `Options`; stop_ids [n], possibly none; answers [B, A, T]: ids of the only texts that may be
    written, each with its stop token, padded with -1; None: any text.
    """

    stop_ids: Int[Array, "n"]
    temperature: Float[Array, ""] | None = None
    top_p: Float[Array, ""] | None = None
    min_p: Float[Array, ""] | None = None
    repetition_penalty: Float[Array, ""] | None = None
    min_new_tokens: Int[Array, ""] | None = None
    answers: Int[Array, "B A T"] | None = None
    top_k: int = flax.struct.field(pytree_node=False, default=0)

    @classmethod
    def of(cls, options: Options, stop_ids: Int[Array, "n"], answers: Int[Array, "B A T"] | None = None) -> "Choosing":
        """The choice that options ask for."""

        def unless(neutral: float, name: str) -> Float[Array, ""] | None:
            value = getattr(options, name)
            return None if value == neutral else jnp.float32(value)

        return cls(
            stop_ids=jnp.asarray(stop_ids, jnp.int32),
            temperature=unless(0, "temperature"),
            top_p=unless(1, "top_p"),
            min_p=unless(0, "min_p"),
            repetition_penalty=unless(1, "repetition_penalty"),
            min_new_tokens=jnp.int32(options.min_new_tokens) if options.min_new_tokens else None,
            answers=answers,
            top_k=options.top_k,
        )

    def processed(
        self, logits: Float[Array, "B V"], ids: Int[Array, "B M"], begun: Int[Array, ""], place: Int[Array, ""]
    ) -> Float[Array, "B V"]:
        """The logits with tokens that may not be written at -inf, and repeated ones lowered.

        Args:
          ids: the text by places, -1 where there is no token (yet).
          begun: the first place after the prompt; place: that of the token to choose.
        """
        if self.repetition_penalty is not None:
            logits = penalized(logits, ids, self.repetition_penalty)
        if self.min_new_tokens is not None:
            stopped = jnp.zeros(logits.shape[1], bool).at[self.stop_ids].set(True)
            logits = jnp.where(stopped & (place - begun < self.min_new_tokens), -jnp.inf, logits)
        if self.answers is not None:
            logits = jnp.where(allowed(self.answers, ids, begun, place, logits.shape[1]), logits, -jnp.inf)
        return logits

    def warped(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        """Logits of the distribution that tokens are drawn from: tempered, and -inf outside top-k, top-p and min-p."""
        logits = logits / self.temperature
        if self.top_k:
            least = jax.lax.top_k(logits, min(self.top_k, logits.shape[1]))[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p is not None:
            logits = nucleus(logits, self.top_p)
        if self.min_p is not None:
            probs = jax.nn.softmax(logits)
            logits = jnp.where(probs < self.min_p * probs.max(axis=1, keepdims=True), -jnp.inf, logits)
        return logits

    def choose(self, logits: Float[Array, "B V"], keys: Key[Array, "B"]) -> Int[Array, "B"]:
        """The likeliest tokens of processed logits, or drawn ones, each by its own key."""
        if self.temperature is None:
            return jnp.argmax(logits, axis=1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys, self.warped(logits)).astype(jnp.int32)

    def stops(self, tokens: Int[Array, "*B"]) -> Array:
        """Tells which tokens end a text."""
        return jnp.any(tokens[..., None] == self.stop_ids, axis=-1)


def penalized(logits: Float[Array, "B V"], ids: Int[Array, "B M"], penalty: Float[Array, ""]) -> Float[Array, "B V"]:
    """Lowers the logits of tokens that the text has: positive ones divided by the penalty, others multiplied."""
    there = jnp.where(ids < 0, logits.shape[1], ids)  # beyond the vocabulary: dropped
    found = jnp.take_along_axis(logits, there, axis=1, mode="clip")
    lowered = jnp.where(found < 0, found * penalty, found / penalty)
    return logits.at[jnp.arange(len(ids))[:, None], there].set(lowered, mode="drop")


def nucleus(logits: Float[Array, "B V"], top_p: Float[Array, ""]) -> Float[Array, "B V"]:
    """Sets all but the likeliest tokens to -inf: those whose likelier ones have less than top_p together stay.

    The threshold is found by halving the range of the bits of the probabilities, as sorting a large vocabulary is slow.
    Tokens of equal probability stay or go together, where `transformers` takes some of them.
    """
    probs = jax.nn.softmax(logits)
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)  # in the order of the numbers, as these are not negative

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends  # what is likelier than `low` has top_p or more together, than `high` less
        middle = low + (high - low) // 2
        enough = jnp.sum(probs, axis=1, keepdims=True, where=bits > middle) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    ends = jnp.full((len(probs), 1), -1), bits.max(axis=1, keepdims=True)
    _, least = jax.lax.fori_loop(0, 31, halve, ends)
    return jnp.where(bits < least, -jnp.inf, logits)


def allowed(
    answers: Int[Array, "B A T"], ids: Int[Array, "B M"], begun: Int[Array, ""], place: Int[Array, ""], vocabulary: int
) -> Array:
    """True [B, V] at tokens that go on one of the answers, where the text so far is the beginning of some."""
    B, A, T = answers.shape
    written = jax.lax.dynamic_slice_in_dim(jnp.pad(ids, [(0, 0), (0, T)], constant_values=-1), begun, T, axis=1)
    count = place - begun
    agrees = (answers == written[:, None]) | (jnp.arange(T) >= count)
    following = jax.lax.dynamic_index_in_dim(answers, jnp.minimum(count, T - 1), axis=2, keepdims=False)  # [B, A]
    tokens = jnp.where(agrees.all(axis=2) & (following >= 0) & (count < T), following, vocabulary)
    return jnp.zeros((B, vocabulary), bool).at[jnp.arange(B)[:, None], tokens].set(True, mode="drop")


def keys_of(seed: int, prompts: list[int], samples: int) -> Key[Array, "R"]:
    """One key for each sample of each prompt, whatever else is in the batch: of the seed, the prompt and the sample.

    Args:
      prompts: a number for each prompt, which depends on its tokens alone.
    """
    key = jax.random.key(seed)
    numbers = jnp.asarray(prompts, jnp.uint32)
    of_prompts = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
    return jax.vmap(lambda one: jax.vmap(lambda i: jax.random.fold_in(one, i))(jnp.arange(samples)))(
        of_prompts
    ).reshape(-1)

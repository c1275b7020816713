"""Cross-entropy over a large vocabulary in chunks of tokens and of words: its logits are never all there.

Of the logits [B, L, V], which a vocabulary of 256,000 makes the largest array of a training step, a chunk is computed,
used and dropped, in the forward pass and again in the backward pass.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vitvlm.core.lowering import by_platform

# Of a chunk's logits [tokens, words] in float32: 128 MiB.
TOKENS, WORDS = 4096, 8192


def next_token_losses(
    tokens: Float[Array, "B L D"],
    kernel: Float[Array, "D V"],
    text_tokens: Int[Array, "B L"],
    text_mask: Shaped[Array, "B L"],
    bias: Float[Array, "V"] | None = None,
    *,
    scale: float = 1.0,
    soft_cap: float | None = None,
) -> Float[Array, "B"]:
    """Computes `captioning.next_token_losses(logits, text_tokens, text_mask)` in chunks, reverse mode only.

    Args:
      tokens, kernel, bias, scale, soft_cap: what makes the logits, see `cross_entropy`; at place t those of the token
        at t + 1.
    """
    losses = cross_entropy(tokens[:, :-1], kernel, text_tokens[:, 1:], bias, scale=scale, soft_cap=soft_cap)
    return jnp.sum(losses, axis=1, where=text_mask[:, 1:] > 0)


def cross_entropy(
    tokens: Float[Array, "B L D"],
    kernel: Float[Array, "D V"],
    labels: Int[Array, "B L"],
    bias: Float[Array, "V"] | None = None,
    *,
    scale: float = 1.0,
    soft_cap: float | None = None,
) -> Float[Array, "B L"]:
    """Computes logsumexp(logits) - logits_label of each token in chunks, float32, reverse mode only.

    The logits are c tanh(x / c) of x = scale * tokens @ kernel + bias; see `models.outputs.LanguageOutput`. Products
    have the dtype of `tokens`; their sums and the logits are float32. Chunks of tokens run along the texts, never along
    the batch, which may lie split over devices. A chunk has every n-th word, so that of a kernel whose words lie split
    over devices each computes its own.

    Args:
      labels: in [0, V). Of any other the loss is the logsumexp alone: leave it out of the sum.
      soft_cap: c; None: the logits are x.
    """
    scaled = tokens if scale == 1.0 else tokens * scale
    return _cross_entropy(soft_cap, scaled, kernel, bias, labels)


def smoothed_cross_entropy(
    tokens: Float[Array, "B L D"],
    kernel: Float[Array, "D V"],
    labels: Int[Array, "B L"],
    bias: Float[Array, "V"] | None = None,
    *,
    smoothing: float,
) -> Float[Array, "B L"]:
    """Computes `cross_entropy` with targets of (1 - e) on the label plus e / V on each word, e being `smoothing`.

    Of the logits that needs the label's and the mean, which is the product with the mean word.
    """
    losses = cross_entropy(tokens, kernel, labels, bias)
    if not smoothing:
        return losses
    wide, words = tokens.astype(jnp.float32), kernel.astype(jnp.float32)
    towards = words.T[labels] - words.mean(axis=1)
    above = jnp.sum(wide * towards, axis=-1)
    if bias is not None:
        above = above + bias.astype(jnp.float32)[labels] - bias.astype(jnp.float32).mean()
    return losses + smoothing * above


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(
    soft_cap: float | None,
    tokens: Float[Array, "B L D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, "V"] | None,
    labels: Int[Array, "B L"],
) -> Float[Array, "B L"]:
    return _forward(soft_cap, tokens, kernel, bias, labels)[0]


def _forward(soft_cap, tokens, kernel, bias, labels):
    chunks = _Chunks(tokens, kernel, bias, soft_cap)

    def some_tokens(_, cut):
        x, label = cut

        def some_words(carry, words):
            total, own = carry
            logits, here = chunks.logits(x, label, words)
            return (jnp.logaddexp(total, jax.nn.logsumexp(logits, axis=-1)), own + _sum(logits, here)), None

        start = (jnp.full(label.shape, -jnp.inf), jnp.zeros(label.shape))
        return None, jax.lax.scan(some_words, start, chunks.words)[0]

    _, (total, own) = jax.lax.scan(some_tokens, None, (chunks.tokens, chunks.cut_tokens(labels)))
    total, own = (chunks.join_tokens(x) for x in (total, own))
    return total - own, (tokens, kernel, bias, labels, total)


def _backward(soft_cap, saved, d_losses):
    tokens, kernel, bias, labels, total = saved
    chunks = _Chunks(tokens, kernel, bias, soft_cap)
    cut = (chunks.tokens, *(chunks.cut_tokens(x) for x in (labels, total, d_losses)))

    def some_words(d_tokens, words):
        def some_tokens(d_words, cut):
            x, label, log_total, slope = cut
            logits, here = chunks.logits(x, label, words)
            d_logits = (jnp.exp(logits - log_total[..., None]) - here) * slope[..., None]
            if soft_cap is not None:
                d_logits = d_logits * (1 - jnp.square(logits / soft_cap))
            d_logits = jnp.where(words.real, d_logits, 0)
            d_kernel, d_bias = d_words
            d_bias = d_bias + d_logits.sum((0, 1))
            d_logits = d_logits.astype(x.dtype)
            d_kernel = d_kernel + _product("BLD,BLV->DV", x, d_logits)
            return (d_kernel, d_bias), _product("BLV,DV->BLD", d_logits, words.kernel)

        start = (jnp.zeros(words.kernel.shape, jnp.float32), jnp.zeros(words.kernel.shape[1], jnp.float32))
        d_words, parts = jax.lax.scan(some_tokens, start, cut)
        return d_tokens + chunks.join_tokens(parts), d_words

    start = jnp.zeros(tokens.shape, jnp.float32)
    d_tokens, (d_kernel, d_bias) = jax.lax.scan(some_words, start, chunks.words)
    d_bias = None if bias is None else chunks.join_words(d_bias).astype(bias.dtype)
    return d_tokens.astype(tokens.dtype), chunks.join_words(d_kernel).astype(kernel.dtype), d_bias, None


_cross_entropy.defvjp(_forward, _backward)


def _product(product: str, left: Array, right: Array) -> Array:
    """Computes an einsum that is summed in float32. A CPU's program widens halves first: it has no such product of all
    layouts of them."""

    def summed(left: Array, right: Array) -> Array:
        return jnp.einsum(product, left, right, preferred_element_type=jnp.float32)

    def widened(left: Array, right: Array) -> Array:
        return summed(left.astype(jnp.float32), right.astype(jnp.float32))

    return summed(left, right) if left.dtype == jnp.float32 else by_platform(summed, left, right, cpu=widened)


def _sum(logits: Float[Array, "B l v"], here: Array) -> Float[Array, "B l"]:
    return jnp.sum(logits, axis=-1, where=here)


class _Words(NamedTuple):
    """Words of a head, or of each of its chunks with a leading axis.

    Fields: kernel [D, v]; bias [v] or None; word [v], their ids; real [v], False for padding.
    """

    kernel: Array
    bias: Array | None
    word: Array
    real: Array


class _Chunks:
    """Tokens and a head in equal chunks, padded behind to fill them: `tokens` [count, B, l, D] and `words`."""

    def __init__(
        self,
        tokens: Float[Array, "B L D"],
        kernel: Float[Array, "D V"],
        bias: Float[Array, "V"] | None,
        soft_cap: float | None,
    ) -> None:
        B, self.length, _ = tokens.shape
        self.vocabulary, self.soft_cap = kernel.shape[1], soft_cap
        self.count, self.token_size = _equal(self.length, max(1, TOKENS // B))
        self.word_count, self.word_size = _equal(self.vocabulary, WORDS)
        self.tokens = self.cut_tokens(tokens)
        word = self._cut_words(jnp.arange(self.vocabulary))
        real = self._cut_words(jnp.ones(self.vocabulary, bool))
        self.words = _Words(
            self._cut_words(kernel.astype(tokens.dtype)), None if bias is None else self._cut_words(bias), word, real
        )

    def cut_tokens(self, x: Shaped[Array, "B L ..."]) -> Shaped[Array, "count B l ..."]:
        widths = [(0, 0)] * x.ndim
        widths[1] = (0, self.count * self.token_size - self.length)
        cut = jnp.pad(x, widths).reshape(len(x), self.count, self.token_size, *x.shape[2:])
        return jnp.moveaxis(cut, 1, 0)

    def join_tokens(self, parts: Shaped[Array, "count B l ..."]) -> Shaped[Array, "B L ..."]:
        joined = jnp.moveaxis(parts, 0, 1)
        return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, : self.length]

    def _cut_words(self, x: Shaped[Array, "*D V"]) -> Shaped[Array, "words *D v"]:
        widths = [(0, 0)] * (x.ndim - 1) + [(0, self.word_count * self.word_size - self.vocabulary)]
        return jnp.moveaxis(jnp.pad(x, widths).reshape(*x.shape[:-1], self.word_size, self.word_count), -1, 0)

    def join_words(self, parts: Shaped[Array, "words *D v"]) -> Shaped[Array, "*D V"]:
        joined = jnp.moveaxis(parts, 0, -1)
        return joined.reshape(*joined.shape[:-2], -1)[..., : self.vocabulary]

    def logits(
        self, x: Float[Array, "B l D"], label: Int[Array, "B l"], words: _Words
    ) -> tuple[Float[Array, "B l v"], Shaped[Array, "B l v"]]:
        """Returns the logits of some words, -inf for padding, and which is the label."""
        logits = _product("BLD,DV->BLV", x, words.kernel)
        if words.bias is not None:
            logits = logits + words.bias
        if self.soft_cap is not None:
            logits = self.soft_cap * jnp.tanh(logits / self.soft_cap)
        return jnp.where(words.real, logits, -jnp.inf), words.real & (words.word == label[..., None])


def _equal(length: int, most: int) -> tuple[int, int]:
    """Returns the number of chunks of at most `most`, as few and as equal as can be, and their size.

    Of up to twice as few as can be, the first that divides the length, if one does: nothing is padded then.
    """
    fewest = max(1, math.ceil(length / most))
    count = next((count for count in range(fewest, 2 * fewest + 1) if length % count == 0), fewest)
    return count, max(1, math.ceil(length / count))

"""Cross-entropy over a large vocabulary in chunks of tokens and of words: its logits are never all there.

Of the logits [B, L, V], which a vocabulary of 150,000 makes the largest array of a training step, a chunk is computed,
used and dropped, in the forward pass and again in the backward pass.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

# Of a chunk's logits [tokens, words] in float32: 128 MiB.
TOKENS, WORDS = 4096, 8192


def next_token_losses(
    tokens: Float[Array, "B L D"],
    kernel: Float[Array, "D V"],
    text_tokens: Int[Array, "B L"],
    text_mask: Shaped[Array, "B L"],
) -> Float[Array, "B"]:
    """Computes `captioning.next_token_losses(tokens @ kernel, text_tokens, text_mask)` in chunks, reverse mode only.

    Chunks of tokens run along the texts, never along the batch, which may lie split over devices. Products have the
    dtype of `tokens`; their sums and the logits are float32.

    Args:
      tokens: what a head without bias makes the logits of, at place t those of the token at t + 1.
      kernel: of the head.
    """
    losses = _cross_entropy(tokens[:, :-1], kernel, text_tokens[:, 1:])
    return jnp.sum(losses, axis=1, where=text_mask[:, 1:] > 0)


@jax.custom_vjp
def _cross_entropy(
    tokens: Float[Array, "B L D"], kernel: Float[Array, "D V"], labels: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """logsumexp(x W) - (x W)_label of each token."""
    return _forward(tokens, kernel, labels)[0]


def _forward(tokens, kernel, labels):
    chunks = _Chunks(tokens, kernel)
    padded_labels = chunks.pad_tokens(labels)

    def some_tokens(_, i):
        x, label = chunks.tokens_at(i), chunks.cut_tokens(padded_labels, i)

        def some_words(carry, j):
            total, own = carry
            logits, _, here = chunks.logits(x, label, j)
            return (jnp.logaddexp(total, jax.nn.logsumexp(logits, axis=-1)), own + _sum(logits, here)), None

        start = (jnp.full(label.shape, -jnp.inf), jnp.zeros(label.shape))
        return None, jax.lax.scan(some_words, start, jnp.arange(chunks.words))[0]

    _, (total, own) = jax.lax.scan(some_tokens, None, jnp.arange(chunks.count))
    total, own = (chunks.join_tokens(x) for x in (total, own))
    return total - own, (tokens, kernel, labels, total)


def _backward(saved, d_losses):
    tokens, kernel, labels, total = saved
    chunks = _Chunks(tokens, kernel)
    padded = [chunks.pad_tokens(x) for x in (labels, total, d_losses)]

    def some_words(d_tokens, j):
        def some_tokens(d_words, i):
            x = chunks.tokens_at(i)
            label, log_total, slope = (chunks.cut_tokens(array, i) for array in padded)
            logits, words, here = chunks.logits(x, label, j)
            d_logits = ((jnp.exp(logits - log_total[..., None]) - here) * slope[..., None]).astype(x.dtype)
            d_words = d_words + jnp.einsum("BLD,BLV->DV", x, d_logits, preferred_element_type=jnp.float32)
            return d_words, jnp.einsum("BLV,DV->BLD", d_logits, words, preferred_element_type=jnp.float32)

        start = jnp.zeros((kernel.shape[0], chunks.word_size), jnp.float32)
        d_words, parts = jax.lax.scan(some_tokens, start, jnp.arange(chunks.count))
        return d_tokens + chunks.join_tokens(parts), d_words

    start = jnp.zeros(tokens.shape, jnp.float32)
    d_tokens, d_words = jax.lax.scan(some_words, start, jnp.arange(chunks.words))
    d_kernel = jnp.moveaxis(d_words, 0, 1).reshape(kernel.shape[0], -1)[:, : kernel.shape[1]]
    return d_tokens.astype(tokens.dtype), d_kernel.astype(kernel.dtype), None


_cross_entropy.defvjp(_forward, _backward)


def _sum(logits: Float[Array, "B l v"], here: Array) -> Float[Array, "B l"]:
    return jnp.sum(logits, axis=-1, where=here)


class _Chunks:
    """Tokens and a kernel in equal chunks, padded behind to fill them."""

    def __init__(self, tokens: Float[Array, "B L D"], kernel: Float[Array, "D V"]) -> None:
        B, self.length, _ = tokens.shape
        self.vocabulary = kernel.shape[1]
        self.count, self.token_size = _equal(self.length, max(1, TOKENS // B))
        self.words, self.word_size = _equal(self.vocabulary, WORDS)
        self.tokens = self.pad_tokens(tokens)
        self.kernel = jnp.pad(kernel, [(0, 0), (0, self.words * self.word_size - self.vocabulary)]).astype(tokens.dtype)

    def pad_tokens(self, x: Shaped[Array, "B L ..."]) -> Shaped[Array, "B padded ..."]:
        widths = [(0, 0)] * x.ndim
        widths[1] = (0, self.count * self.token_size - self.length)
        return jnp.pad(x, widths)

    def cut_tokens(self, x: Shaped[Array, "B padded ..."], i: Int[Array, ""]) -> Shaped[Array, "B l ..."]:
        return jax.lax.dynamic_slice_in_dim(x, i * self.token_size, self.token_size, axis=1)

    def join_tokens(self, parts: Shaped[Array, "count B l ..."]) -> Shaped[Array, "B L ..."]:
        joined = jnp.moveaxis(parts, 0, 1)
        return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, : self.length]

    def tokens_at(self, i: Int[Array, ""]) -> Float[Array, "B l D"]:
        return self.cut_tokens(self.tokens, i)

    def logits(
        self, x: Float[Array, "B l D"], label: Int[Array, "B l"], j: Int[Array, ""]
    ) -> tuple[Float[Array, "B l v"], Float[Array, "D v"], Shaped[Array, "B l v"]]:
        """Returns the logits of chunk j, -inf behind the last word, the chunk of the kernel, and which is the label."""
        words = jax.lax.dynamic_slice_in_dim(self.kernel, j * self.word_size, self.word_size, axis=1)
        logits = jnp.einsum("BLD,DV->BLV", x, words, preferred_element_type=jnp.float32)
        word = j * self.word_size + jnp.arange(self.word_size)
        return jnp.where(word < self.vocabulary, logits, -jnp.inf), words, word == label[..., None]


def _equal(length: int, most: int) -> tuple[int, int]:
    """Returns the number of chunks of at most `most`, as few and as equal as can be, and their size."""
    count = max(1, math.ceil(length / most))
    return count, max(1, math.ceil(length / count))

"""The caption loss in chunks of tokens and words: equal to the whole one, with no [B, L, V] in the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm.objectives import captioning, next_token

B, L, D, V = 3, 8, 6, 23


def draw():
    rng = np.random.default_rng(0)
    tokens, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((B, L, D), (D, V)))
    mask = (np.arange(L) < np.array([8, 1, 5])[:, None]).astype(np.int32)
    return tokens, kernel, rng.integers(V, size=(B, L)), mask, rng.normal(size=B).astype(np.float32)


def whole(tokens, kernel, texts, mask, bias=None, *, scale=1.0, soft_cap=None):
    logits = scale * jnp.einsum("BLD,DV->BLV", tokens, kernel, preferred_element_type=jnp.float32)
    logits = logits if bias is None else logits + bias
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    return captioning.next_token_losses(logits, texts, mask)


@pytest.mark.parametrize("chunk_tokens, chunk_words", [(6, 5), (1, 23), (4096, 8), (4096, 8192)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_value_and_gradient_are_the_whole_loss(monkeypatch, chunk_tokens, chunk_words, dtype, tolerance):
    monkeypatch.setattr(next_token, "TOKENS", chunk_tokens)
    monkeypatch.setattr(next_token, "WORDS", chunk_words)
    tokens, kernel, texts, mask, direction = draw()
    tokens, kernel = jnp.asarray(3 * tokens, dtype), jnp.asarray(kernel, dtype)

    def run(losses):
        def both(tokens, kernel):
            found, vjp = jax.vjp(lambda *x: losses(*x, texts, mask), tokens, kernel)
            return found, vjp(direction)

        return jax.jit(both)(tokens, kernel)

    (found, gradients), (expected, wanted) = run(next_token.next_token_losses), run(whole)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(np.float32(ours), np.float32(theirs), atol=tolerance * max(scale, 1))


@pytest.mark.parametrize("how", [{"scale": D**-0.5}, {"soft_cap": 2.0}, {"scale": 0.3, "soft_cap": 1.5}], ids=str)
@pytest.mark.parametrize("chunk_words", [5, 8192])
def test_a_bias_a_scale_and_a_soft_cap(monkeypatch, chunk_words, how):
    """T5's scaled logits, Phi's bias and Gemma's cap; 23 words in chunks of 5 have words of padding."""
    monkeypatch.setattr(next_token, "TOKENS", 6)
    monkeypatch.setattr(next_token, "WORDS", chunk_words)
    tokens, kernel, texts, mask, direction = draw()
    bias = np.linspace(-1, 1, V, dtype=np.float32)

    def run(losses):
        def both(*head):
            found, vjp = jax.vjp(lambda x, w, b: losses(x, w, texts, mask, b, **how), *head)
            return found, vjp(direction)

        return jax.jit(both)(tokens, kernel, bias)

    found, expected = run(next_token.next_token_losses), run(whole)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_cross_entropy_is_that_of_the_label_at_the_same_place():
    tokens, kernel, labels, *_ = draw()
    expected = -jax.nn.log_softmax(tokens @ kernel)[np.arange(B)[:, None], np.arange(L), labels]
    np.testing.assert_allclose(next_token.cross_entropy(tokens, kernel, labels), expected, rtol=1e-5, atol=1e-5)


def test_a_text_of_one_token_and_an_empty_one():
    tokens, kernel, texts, *_ = draw()
    for length in (1, 2):
        found = next_token.next_token_losses(tokens[:, :length], kernel, texts[:, :length], np.zeros((B, length)))
        assert found.shape == (B,) and not found.any()


def test_memory_for_a_large_vocabulary():
    """The bar: no logits [B, L, V] in the program, and temporary memory below theirs, for 150,000 words."""
    shapes = [((2, 257, 16), jnp.float32), ((16, 150_000), jnp.float32), ((2, 257), jnp.int32), ((2, 257), jnp.int32)]
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    logits = 2 * 256 * 150_000 * 4

    def compiled(losses):
        gradient = jax.value_and_grad(lambda *x: losses(*x).sum(), (0, 1))
        return jax.jit(gradient).lower(*arguments).compile()

    ours = compiled(next_token.next_token_losses)
    assert "256,150" not in ours.as_text()
    assert ours.memory_analysis().temp_size_in_bytes < logits / 4
    assert compiled(whole).memory_analysis().temp_size_in_bytes > logits

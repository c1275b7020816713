"""Hard negatives, the matching loss, the contrast of several embeddings an image, and smoothed targets of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitvlm.objectives import contrastive, matching, next_token

RNG = np.random.default_rng(0)
draw = jax.jit(matching.hard_negatives)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 2**31 - 1))
def test_a_negative_is_another_real_pair(real, seed):
    mask = np.array(real, np.float32)
    logits = np.random.default_rng(seed).normal(size=(6, 6), scale=30).astype(np.float32)
    texts, images, exist = draw(jax.random.key(seed), logits, mask)
    assert bool(exist) == (mask.sum() > 1)
    for i in np.flatnonzero(mask) if exist else ():
        assert texts[i] != i and mask[texts[i]] and images[i] != i and mask[images[i]]


def test_the_more_similar_are_drawn_more_often():
    """Both ways with the probabilities of a softmax over the others."""
    logits, mask = RNG.normal(size=(4, 4)).astype(np.float32), np.array([1, 1, 1, 0], np.float32)
    keys = jax.random.split(jax.random.key(0), 20_000)
    texts, images, _ = jax.jit(jax.vmap(matching.hard_negatives, (0, None, None)))(keys, logits, mask)
    for found, scores in ((texts, logits), (images, logits.T)):
        for i in range(3):
            others = [j for j in range(3) if j != i]
            wanted = np.exp(scores[i, others]) / np.exp(scores[i, others]).sum()
            shares = [np.mean(np.asarray(found)[:, i] == j) for j in others]
            np.testing.assert_allclose(shares, wanted, atol=0.015)  # four standard deviations


def test_the_matching_loss_is_pytorchs():
    logits, mask = RNG.normal(size=(4, 3, 2)).astype(np.float32), np.array([1, 0, 1, 1], np.float32)
    real = torch.tensor(logits[mask > 0], requires_grad=True)
    expected = torch.nn.functional.cross_entropy(real.reshape(-1, 2), torch.tensor([1, 0, 0] * 3))
    expected.backward()
    run = jax.jit(jax.value_and_grad(matching.matching, has_aux=True))
    (loss, accuracy), gradient = run(logits, mask, True)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient[mask > 0], real.grad.numpy(), atol=1e-7)
    assert not gradient[1].any()
    right = (logits[mask > 0].argmax(-1) == [1, 0, 0]).mean()
    np.testing.assert_allclose(accuracy, right, rtol=1e-6)
    (alone, _), gradient = run(logits, mask, False)
    expected = torch.nn.functional.cross_entropy(real[:, 0], torch.tensor([1, 1, 1]))
    np.testing.assert_allclose(alone, expected.item(), rtol=1e-6)
    assert not gradient[:, 1:].any()


def test_the_best_of_several_embeddings_counts():
    """Values and gradients of the contrast equal PyTorch's, smoothed; padding is neither example nor negative."""
    image, text = (RNG.normal(size=shape).astype(np.float32) for shape in ((5, 3, 4), (5, 4)))
    mask = np.array([1, 1, 0, 1, 1], np.float32)
    theirs = [torch.tensor(side[mask > 0], requires_grad=True) for side in (image, text)]
    similar = torch.einsum("bmd,td->btm", *theirs).max(-1).values / 0.07
    labels = torch.arange(4)
    each = [torch.nn.functional.cross_entropy(x, labels, label_smoothing=0.1) for x in (similar, similar.T)]
    (sum(each) / 2).backward()
    run = jax.jit(jax.value_and_grad(contrastive.softmax, (0, 1)), static_argnums=4)
    loss, gradients = run(image, text, jnp.float32(1 / 0.07), mask, 0.1)
    np.testing.assert_allclose(loss, sum(each).item() / 2, rtol=1e-5)
    for found, expected in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(found[mask > 0], expected.grad.numpy(), atol=1e-5)
        assert not found[2].any()
    right = (similar.argmax(1) == labels).float().mean().item()
    assert contrastive.accuracies(image, text, mask)["image_to_text_accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_targets_of_tokens_are_pytorchs(smoothing):
    shapes = ((2, 5, 6), (6, 11), (11,))
    given = [RNG.normal(size=shape).astype(np.float32) for shape in shapes]
    labels = RNG.integers(11, size=(2, 5))
    tokens, kernel, bias = (torch.tensor(each, requires_grad=True) for each in given)
    logits = (tokens @ kernel + bias).reshape(-1, 11)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels).flatten(), label_smoothing=smoothing)
    expected.backward()

    def loss(tokens, kernel, bias):
        return next_token.smoothed_cross_entropy(tokens, kernel, labels, bias, smoothing=smoothing).mean()

    found, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*map(jnp.asarray, given))
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    for ours, theirs in zip(gradients, (tokens, kernel, bias), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), atol=1e-6)

"""Caption losses against PyTorch's cross-entropy with an ignored index, as open_clip's CoCaLoss has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vitvlm.objectives import captioning

PAD = 0


def draw(lengths, length=6, vocabulary=11):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(lengths), length, vocabulary)).astype(np.float32) * 3
    mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int32)
    return logits, rng.integers(1, vocabulary, mask.shape) * mask, mask


def ours(logits, texts, text_mask, mask):
    return captioning.token_mean(captioning.next_token_losses(logits, texts, text_mask), text_mask, mask)


@pytest.mark.parametrize("lengths", [(6,), (2, 6, 1, 4), (0, 3, 5)], ids=str)
def test_value_and_gradient(lengths):
    logits, texts, mask = draw(lengths)
    value, gradient = jax.value_and_grad(ours)(logits, texts, mask, np.ones(len(lengths)))
    theirs = torch.tensor(logits, requires_grad=True)
    expected = F.cross_entropy(theirs[:, :-1].permute(0, 2, 1), torch.from_numpy(texts[:, 1:]), ignore_index=PAD)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad, atol=1e-6)


def test_each_texts_sum():
    logits, texts, mask = draw((4, 2))
    found = captioning.next_token_losses(logits.astype(jnp.bfloat16), texts, mask)
    assert found.dtype == jnp.float32
    wide = np.asarray(logits.astype(jnp.bfloat16), np.float64)
    log_p = wide - np.log(np.exp(wide).sum(axis=2, keepdims=True))
    expected = [-sum(log_p[b, t, texts[b, t + 1]] for t in range(length - 1)) for b, length in enumerate((4, 2))]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_padding_weighs_nothing():
    """Neither examples nor tokens; not even what is not finite."""
    logits, texts, text_mask = draw((4, 3, 6))
    spoilt = logits.copy()
    spoilt[2] = np.inf
    mask = np.array([1.0, 1.0, 0.0])
    expected = ours(logits[:2], texts[:2], text_mask[:2], mask[:2])
    np.testing.assert_allclose(ours(spoilt, texts, text_mask, mask), expected, rtol=1e-6)


def test_nothing_to_predict():
    logits, texts, mask = draw((1, 1))
    value, gradient = jax.value_and_grad(ours)(logits, texts, mask, np.ones(2))
    assert value == 0 and not gradient.any()

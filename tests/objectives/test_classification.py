"""Cross-entropies, smoothing, accuracies and mixing, against PyTorch and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vitvlm.objectives import classification, masked, mixing

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 5)).astype(np.float32) * 3
LABELS = RNG.integers(0, 5, 7).astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy_equals_torch(smoothing):
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS), torch.tensor(LABELS).long(), label_smoothing=smoothing, reduction="none"
    )
    targets = classification.smooth_labels(LABELS, 5, smoothing)
    np.testing.assert_allclose(classification.softmax_cross_entropy(LOGITS, targets), expected, atol=1e-5)


def test_sigmoid_cross_entropy_equals_torch():
    targets = RNG.uniform(size=(7, 5)).astype(np.float32)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(LOGITS), torch.tensor(targets), reduction="none"
    ).sum(-1)
    np.testing.assert_allclose(classification.sigmoid_cross_entropy(LOGITS, targets), expected, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3])
def test_top_k_correct(k):
    expected = [label in np.argsort(-row)[:k] for row, label in zip(LOGITS, LABELS)]
    np.testing.assert_array_equal(classification.top_k_correct(LOGITS, LABELS, k), np.float32(expected))


def test_ties_are_no_hits():
    assert classification.top_k_correct(jnp.zeros((2, 3)), jnp.array([0, 2])).sum() == 0


def test_masked_mean_ignores_what_is_masked_even_nan():
    values = jnp.array([1.0, jnp.nan, 3.0])
    assert masked.mean(values, jnp.array([1.0, 0.0, 1.0])) == 2
    assert masked.mean(values, jnp.zeros(3)) == 0
    gradient = jax.grad(lambda x: masked.mean(x * x, jnp.array([1.0, 0.0, 1.0])))(jnp.array([1.0, 5.0, 3.0]))
    np.testing.assert_allclose(gradient, [1.0, 0.0, 3.0])


IMAGES = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 6, 9, 2))
TARGETS = jnp.eye(4)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("seed", range(5))
def test_targets_are_mixed_in_the_share_of_the_pixels(mixup, cutmix, seed):
    images, targets = mixing.mix(jax.random.key(seed), IMAGES, TARGETS, jnp.ones(4), mixup, cutmix)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    # Every image is constant, so its mean is the mixture of the constants by the targets' shares.
    np.testing.assert_allclose(images.mean((1, 2, 3)), targets @ jnp.arange(4.0), rtol=1e-5)
    if not mixup:
        assert set(np.unique(images)) <= {0.0, 1.0, 2.0, 3.0}


def test_mixing_is_off_by_default_and_random_by_key():
    images, targets = mixing.mix(jax.random.key(0), IMAGES, TARGETS, jnp.ones(4), 0.0, 0.0)
    assert images is IMAGES and targets is TARGETS
    shares = [mixing.mix(jax.random.key(s), IMAGES, TARGETS, jnp.ones(4), 0.8, 1.0)[1][0, 0] for s in range(8)]
    assert len(np.unique(shares)) > 4


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_an_example_whose_partner_is_padding_stays_as_it_is(mixup, cutmix):
    mask = jnp.array([1.0, 1.0, 0.0, 1.0])  # the partner of example 3 is example 2
    images, targets = mixing.mix(jax.random.key(1), IMAGES, TARGETS, mask, mixup, cutmix)
    np.testing.assert_array_equal(images[3], IMAGES[3])
    np.testing.assert_array_equal(targets[3], TARGETS[3])
    assert targets[1, 0] > 0


def test_mixup_shares_follow_the_beta_distribution():
    keys = jax.random.split(jax.random.key(0), 2000)
    own = jax.vmap(lambda key: mixing.mix(key, IMAGES, TARGETS, jnp.ones(4), 0.8, 0.0)[1][1, 1])(keys)
    assert own.mean() == pytest.approx(0.5, abs=0.02)
    assert own.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)

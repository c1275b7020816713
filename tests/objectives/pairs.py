"""Pairs of embeddings, and every objective as one function of the same arguments, for the tests of contrastive ones."""

import functools

import jax
import numpy as np

from vitvlm.objectives import chunked, contrastive

SCALE, BIAS = np.float32(14.3), np.float32(-6.0)


def make_pairs(size, width=6, padding=0, seed=0):
    """Normalised image and text embeddings [B, D], in part alike, and a mask [B] with zeros at random places."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(size, width))
    text = 0.5 * image + rng.normal(size=(size, width))
    mask = np.ones(size, np.float32)
    mask[rng.permutation(size)[:padding]] = 0
    return *(unit(side).astype(np.float32) for side in (image, text)), mask


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def objective(name, **where):
    """`(image, text, scale, bias, mask) -> loss`: dense, or chunked if there are keywords."""
    module = chunked if where else contrastive
    if name == "sigmoid":
        return functools.partial(module.sigmoid, **where)
    smoothing = {"softmax": 0.0, "smoothed": 0.1}[name]
    return lambda image, text, scale, bias, mask: module.softmax(image, text, scale, mask, smoothing, **where)


@functools.cache
def value_and_gradients(name, **where):
    """Returns the compiled loss with its gradients with respect to images, texts, scale and bias."""
    return jax.jit(jax.value_and_grad(objective(name, **where), argnums=(0, 1, 2, 3)))


def assert_equal(found, expected):
    for label, a, b in zip(
        ("loss", "image", "text", "scale", "bias"), (found[0], *found[1]), (expected[0], *expected[1])
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=label)

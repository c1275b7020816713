"""Cached gradients equal those of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm.core.config import ConfigError
from vitvlm.training.grad_cache import make_cached_gradients

B, WIDTH, D = 8, 5, 4


def make_params(dtype=np.float32):
    rng = np.random.default_rng(0)
    towers = {name: rng.normal(size=(WIDTH, D)).astype(dtype) for name in ("image", "text")}
    return {**towers, "scale": np.asarray(5.0, dtype)}


def make_batch():
    rng = np.random.default_rng(1)
    sides = {name: rng.normal(size=(B, WIDTH)).astype(np.float32) for name in ("image", "text")}
    return {**sides, "label": np.arange(B), "example_mask": np.array([1, 1, 0, 1, 1, 1, 1, 0], np.float32)}


def encode(params, batch, rng):
    def tower(name):
        features = jnp.tanh(batch[name] @ params[name])
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    return {"image": tower("image"), "text": tower("text")}


def noisy(params, batch, rng):
    """Dropout: the gradient is right only if both passes drop the same."""
    keep = jax.random.bernoulli(rng, 0.5, batch["image"].shape)
    return encode(params, {**batch, "image": batch["image"] * keep}, rng)


def loss(embeddings, params, batch):
    """Loss over all pairs that depends on the order of the examples; it regularises the towers, as the encoder does."""
    logits = params["scale"] * embeddings["image"] @ embeddings["text"].T
    own = jax.nn.log_softmax(jnp.where(batch["example_mask"][None] > 0, logits, -1e9))[jnp.arange(B), batch["label"]]
    penalty = 0.1 * jnp.sum(params["image"] ** 2)
    return -jnp.sum(own * batch["example_mask"]) / batch["example_mask"].sum() + penalty, {"penalty": penalty}


def close(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


@pytest.mark.parametrize("accumulate", [1, 2, 4, 8])
def test_equals_the_whole_batch(accumulate):
    params, batch, rng = make_params(), make_batch(), jax.random.key(0)
    expected, gradients = jax.value_and_grad(lambda p: loss(encode(p, batch, rng), p, batch)[0])(params)
    found, metrics = jax.jit(make_cached_gradients(encode, loss, accumulate=accumulate))(params, batch, rng)
    close(found, gradients)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert set(metrics) == {"loss", "penalty"}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_both_passes_draw_the_same(accumulate):
    params, batch, rng = make_params(), make_batch(), jax.random.key(7)

    def unrolled(params):
        order = np.arange(B).reshape(-1, accumulate).T  # micro-batch k holds k, k+A, …
        parts = [
            noisy(params, {name: value[rows] for name, value in batch.items()}, jax.random.fold_in(rng, k))
            for k, rows in enumerate(order)
        ]
        back = np.argsort(order.reshape(-1))
        embeddings = {name: jnp.concatenate([part[name] for part in parts])[back] for name in ("image", "text")}
        return loss(embeddings, params, batch)[0]

    expected, gradients = jax.value_and_grad(unrolled)(params)
    found, metrics = jax.jit(make_cached_gradients(noisy, loss, accumulate=accumulate))(params, batch, rng)
    close(found, gradients)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)


def test_gradients_have_the_parameters_dtypes():
    params = make_params(jnp.bfloat16)
    found, _ = make_cached_gradients(encode, loss, accumulate=4)(params, make_batch(), jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, params)


def test_micro_batches_need_less_memory():
    """The second pass holds the activations of one micro-batch, not of the batch."""

    def deep(params, batch, rng):
        x = batch["image"]
        for _ in range(4):
            x = jnp.tanh(x @ params["image"])
        return x

    def spread(embeddings, params, batch):
        return jnp.mean(jax.nn.logsumexp(embeddings[:, :8] @ embeddings[:, :8].T, axis=1)), {}

    params = {"image": jax.ShapeDtypeStruct((256, 256), np.float32)}
    batch = {"image": jax.ShapeDtypeStruct((512, 256), np.float32)}

    def memory(accumulate):
        gradients = make_cached_gradients(deep, spread, accumulate=accumulate)
        lowered = jax.jit(gradients).lower(params, batch, jax.eval_shape(jax.random.key, 0))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    whole, cached = memory(1), memory(8)
    print(f"whole {whole / 2**20:.2f} MiB, cached {cached / 2**20:.2f} MiB")
    assert cached < whole


def test_what_does_not_divide_is_an_error():
    with pytest.raises(ConfigError, match="a batch of 8 does not divide into 3"):
        make_cached_gradients(encode, loss, accumulate=3)(make_params(), make_batch(), jax.random.key(0))
    with pytest.raises(ConfigError, match="at least 1"):
        make_cached_gradients(encode, loss, accumulate=0)

"""BERT: what pools, what padding changes, and what is said of a field that cannot be meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.nn.stacking import unstack_blocks

SIZES = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12, "vocab_size": 20, "length": 6}
TEXTS = jnp.array([[3, 4, 9, 3, 9, 1], [3, 9, 2, 15, 1, 1]], jnp.int32)
MASK = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], jnp.int32)


def a_model(**fields):
    """Makes a small BERT with random normal parameters."""
    model = models.build("bert", **SIZES, **fields)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TEXTS)
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, leaf.dtype), shapes)


def test_padding_is_nothing():
    """Its ids change no real token, and a text padded to any length has the same vector."""
    model, variables = a_model(pool="mean")
    run = jax.jit(model.apply)
    found = run(variables, TEXTS, MASK)
    other = run(variables, jnp.where(MASK > 0, TEXTS, 7), MASK == 1)
    np.testing.assert_allclose(other.pooled, found.pooled, atol=1e-6)
    np.testing.assert_allclose(run(variables, TEXTS[1:, :2]).pooled, found.pooled[1:], atol=1e-6)
    assert np.abs(run(variables, TEXTS).pooled - found.pooled).max() > 1e-3
    assert not run(variables, TEXTS, 0 * MASK).pooled.any()


def test_bfloat16_blocks_are_looped_or_scanned_alike():
    scanned, variables = a_model(dtype=jnp.bfloat16, remat="full")
    looped = models.build("bert", **SIZES, dtype=jnp.bfloat16, scan=False)
    found = jax.jit(scanned.apply)(variables, TEXTS, MASK)
    assert found.tokens.dtype == found.pooled.dtype == jnp.bfloat16
    apart = {"params": unstack_blocks(variables["params"])}
    expected = jax.jit(looped.apply)(apart, TEXTS, MASK).pooled
    np.testing.assert_allclose(found.pooled.astype(jnp.float32), expected.astype(jnp.float32), atol=0.03)


def test_a_pooler_that_does_not_pool_is_kept():
    for fields, there in [({}, True), ({"pool": "mean"}, False), ({"pool": "first", "pooler": True}, True)]:
        assert ("pooler" in a_model(**fields)[1]["params"]) == there


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "average"}, r"model\.pool: no pooling 'average'; there is: cls, first, mean"),
        ({"pooler": False}, r'model\.pooler: False, but model\.pool is "cls": use "first" or "mean"'),
        ({"variant": "bass"}, r'model\.variant: no variant \'bass\'; did you mean "base"'),
        ({"heights": 2}, r"model\.heights: no such field"),
    ],
)
def test_what_is_wrong_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        a_model(**fields)


def test_texts_that_are_too_long():
    model, variables = a_model()
    with pytest.raises(ValueError, match="texts of 7 tokens; there are 6 positions"):
        model.apply(variables, jnp.zeros((1, 7), jnp.int32))

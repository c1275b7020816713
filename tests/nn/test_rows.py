"""Matrices by rows: near those that were stored, their products equal, in a model as in a single layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm.core.config import ConfigError
from vitvlm.nn.dense import Dense
from vitvlm.nn.rows import KINDS, rows


def matrix(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("shape", [(64, 10), (130, 7), (3, 48, 6), (5, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_matrix_is_near(kind, shape):
    given = matrix(*shape)
    stored = rows(given, kind)
    assert (stored.kind, stored.shape, stored.size, stored.ndim) == (kind, shape, given.size, len(shape))
    if kind == "float32":
        assert (stored.unbox() == given).all()
    elif kind == "bfloat16":
        assert (stored.unbox() == given.astype(jnp.bfloat16).astype(jnp.float32)).all()
    else:
        step = np.repeat(stored.scales, shape[-2] // stored.scales.shape[-1], axis=-1).swapaxes(-1, -2)
        assert (abs(stored.unbox() - given) <= 0.5001 * step).all()


def test_a_block_of_zeros_stays():
    assert not rows(jnp.zeros((64, 2)), "int8").unbox().any()


@pytest.mark.parametrize("tokens", [(1, 1), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_stored_rows_is_one_with_the_matrix(kind, tokens):
    """Products of one token are computed in parts, of several whole; outputs that are prime have as many parts."""
    for inputs, outputs in ((64, 12), (10, 7), (6, 1)):
        layer, stored = Dense(outputs), rows(matrix(inputs, outputs), kind)
        x, bias = matrix(*tokens, inputs) * 0.1, matrix(outputs)
        expected = layer.apply({"params": {"kernel": stored.unbox(), "bias": bias}}, x)
        found = jax.jit(layer.apply)({"params": {"kernel": stored, "bias": bias}}, x)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_unknown_kind():
    with pytest.raises(ConfigError, match="weights: 'int4'"):
        rows(matrix(4, 4), "int4")

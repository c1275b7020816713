"""Matrices in 8 and 4 bits: the published code, its nearest values, blocks, and what a model computes with them."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from vitvlm.core.config import ConfigError
from vitvlm.nn import quantized
from vitvlm.nn.dense import Dense
from vitvlm.nn.quantized import BLOCK, KINDS, NF4, Quantized, check, quantize

SHAPES = [(6, 5), (64, 3), (130, 2), (2, 66, 4), (2, 3, 70, 1)]


def test_nf4_is_the_code_of_the_paper():
    """Dettmers et al. 2023, section 3: quantiles of the normal on both sides of an exact zero, scaled to [-1, 1]."""
    offset = 0.9677083  # bitsandbytes.functional.create_normal_map
    above = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort([*above, 0.0, *below])
    np.testing.assert_allclose(NF4, values / values.max(), atol=1e-6)


def test_other_devices_decode_to_the_same_values():
    codes = jnp.arange(16, dtype=jnp.uint8)
    np.testing.assert_array_equal(quantized._chosen(codes), np.asarray(NF4, np.float32))
    np.testing.assert_array_equal(quantized._looked_up(codes), np.asarray(NF4, np.float32))


def by_numpy(matrix: np.ndarray, kind: str) -> np.ndarray:
    """Returns what a matrix is after quantization, block by block."""
    whole = np.zeros(matrix.shape, np.float32)
    levels = np.arange(-127, 128) / 127 if kind == "int8" else np.asarray(NF4)
    for place in np.ndindex(*matrix.shape[:-2], matrix.shape[-1]):
        for start in range(0, matrix.shape[-2], BLOCK):
            rows = (*place[:-1], slice(start, start + BLOCK), place[-1])
            largest = np.abs(matrix[rows]).max()
            if largest > 0:
                nearest = np.abs(matrix[rows][:, None] / largest - levels).argmin(axis=1)
                whole[rows] = levels[nearest] * largest
    return whole


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_numpy(kind, shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    matrix[..., 0, 0] = 40.0  # one block's scale is far from the others'
    found = quantize(jnp.asarray(matrix), kind)
    assert found.shape == shape and found.kind == kind and found.size == matrix.size
    np.testing.assert_allclose(found.whole(), by_numpy(matrix, kind), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "bytes_each"), [("int8", 1), ("nf4", 0.5)])
def test_bytes(kind, bytes_each):
    found = quantize(jnp.ones((256, 24)), kind)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(found)) == 256 * 24 * bytes_each + 256 // BLOCK * 24 * 4


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    matrix=hnp.arrays(np.float32, (8, 2), elements=st.floats(-1e4, 1e4, width=32)), kind=st.sampled_from(KINDS)
)
def test_no_number_moves_further_than_half_a_step_and_twice_is_once(matrix, kind):
    once = quantize(jnp.asarray(matrix), kind).whole()
    widest = np.diff(NF4).max() / 2 if kind == "nf4" else 0.5 / 127
    largest = np.abs(matrix).max(axis=0)
    assert (np.abs(once - matrix) <= largest * widest * 1.001 + 1e-30).all()
    np.testing.assert_allclose(quantize(once, kind).whole(), once, rtol=1e-5, atol=1e-30)


def test_zeros_stay_zeros():
    for kind in KINDS:
        assert not quantize(jnp.zeros((66, 2)), kind).whole().any()


class Layers(nn.Module):
    """Three linear layers with a gate, scanned, whose modules know nothing of quantization, and one with Flax's own."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        def body(layer, x):
            gate = layer.param("gate", nn.initializers.normal(1.0), (6, 5))
            return x + jnp.tanh(Dense(6, dtype=self.dtype, name="linear")(x) @ gate) @ gate.T, None

        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x):
                return body(self, x)

        x, _ = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(name="blocks")(x)
        return nn.Dense(2, name="flax")(x)


def quantized_and_whole(kind):
    model = Layers()
    params = model.init(jax.random.key(0), jnp.ones((4, 6)))["params"]
    stored = jax.tree.map(
        lambda leaf: quantize(leaf, kind) if leaf.ndim > 1 and leaf.shape[-2] % 2 == 0 else leaf, params
    )
    whole = jax.tree.map(lambda leaf: leaf.whole() if isinstance(leaf, Quantized) else leaf, stored, is_leaf=is_box)
    return model, stored, whole


def is_box(leaf):
    return isinstance(leaf, Quantized)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_computes_with_them_what_it_computes_with_them_made_whole(kind):
    """Values, and gradients with respect to inputs and to a bias, through scanned layers."""
    model, stored, whole = quantized_and_whole(kind)
    assert sum(is_box(leaf) for leaf in jax.tree.leaves(stored, is_leaf=is_box)) == 3

    def loss(x, bias, params):
        linear = {**params["blocks"]["linear"], "bias": bias}
        params = {**params, "blocks": {**params["blocks"], "linear": linear}}
        return (model.apply({"params": params}, x) ** 2).sum()

    x, bias = jax.random.normal(jax.random.key(1), (4, 6)), whole["blocks"]["linear"]["bias"] + 0.1
    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        value_and_grad(x, bias, stored),
        value_and_grad(x, bias, whole),
    )


@pytest.mark.parametrize("stored", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("computed", [jnp.bfloat16, jnp.float32])
def test_a_float_kernel_in_fewer_bits_has_the_gradient_it_had(stored, computed):
    """In the kernel's own dtype; also where a kernel in bfloat16 trains."""
    dense = Dense(3, dtype=computed, param_dtype=stored)
    x = jax.random.normal(jax.random.key(1), (4, 2, 5))
    params = dense.init(jax.random.key(0), x)["params"]

    def plain(params, x):
        y = x.astype(computed) @ params["kernel"].astype(computed) + params["bias"].astype(computed)
        return (y.astype(jnp.float32) ** 2).sum()

    def ours(params, x):
        return (dense.apply({"params": params}, x).astype(jnp.float32) ** 2).sum()

    found, wanted = (jax.jit(jax.value_and_grad(each, argnums=(0, 1)))(params, x) for each in (ours, plain))
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, wanted)
    tolerance = 1e-5 if computed == jnp.float32 and stored == jnp.float32 else 4e-2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(*map(np.float32, (a, b)), rtol=tolerance, atol=tolerance), found, wanted
    )


def test_what_cannot_be_quantized_is_said():
    with pytest.raises(ConfigError, match=r"x: 'int4' is neither int8 nor nf4"):
        check((4, 4), "int4", "x")
    with pytest.raises(ConfigError, match=r"x: int8 is for matrices \[\.\.\., in, out\], not for \[4\]; take bfloat16"):
        check((4,), "int8", "x")
    with pytest.raises(ConfigError, match=r"x: nf4 keeps inputs in pairs, and \[3, 4\] has 3; take int8"):
        quantize(jnp.ones((3, 4)), "nf4", "x")

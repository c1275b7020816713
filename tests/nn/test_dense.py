"""Dense: values and gradients against NumPy's product, dtypes, and what it costs across devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import products

from vitvlm.nn.dense import Dense


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 3, 5)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_values_and_gradients_are_the_products(leading, use_bias):
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=(*leading, width)).astype(np.float32) for width in (4, 6))
    model = Dense(6, use_bias)
    params = model.init(jax.random.key(0), x)["params"]
    if use_bias:
        params = params | {"bias": jnp.arange(6.0)}
    y, vjp = jax.vjp(lambda params, x: model.apply({"params": params}, x), params, jnp.asarray(x))
    d_params, d_x = vjp(jnp.asarray(g))
    kernel = np.asarray(params["kernel"])
    np.testing.assert_allclose(y, x @ kernel + np.asarray(params.get("bias", 0)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_x, g @ kernel.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_params["kernel"], x.reshape(-1, 4).T @ g.reshape(-1, 6), rtol=1e-5, atol=1e-5)
    assert ("bias" in d_params) == use_bias
    if use_bias:
        np.testing.assert_allclose(d_params["bias"], g.reshape(-1, 6).sum(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform, axes", [("cpu", 2), ("tpu", 3), ("cuda", 3)])
def test_weight_gradients_are_flat_on_a_cpu_only(platform, axes):
    model = Dense(6, use_bias=False)
    x = jnp.ones((2, 3, 4))
    params = model.init(jax.random.key(0), x)
    gradients = jax.jit(jax.grad(lambda params, x: jnp.sin(model.apply(params, x)).sum(), argnums=(0, 1)))
    program = gradients.trace(params, x).lower(lowering_platforms=(platform,)).as_text()
    backward = [line for line in program.splitlines() if "dot_general" in line][1:]
    assert len(backward) == 2 and all(("tensor<2x3x" in line) == (axes == 3) for line in backward)
    assert ("optimization_barrier" in program) == ("reshape" in program) == (axes == 2)


@pytest.mark.parametrize("policy, count", [("nothing_saveable", 4), ("dots_saveable", 3)])
def test_remat_policies_see_the_product(policy, count):
    model = Dense(6)
    x = jnp.ones((2, 3, 4))
    params = model.init(jax.random.key(0), x)

    @functools.partial(jax.checkpoint, policy=getattr(jax.checkpoint_policies, policy))
    def layer(params, x):
        return jnp.tanh(model.apply(params, x))

    program = jax.make_jaxpr(jax.grad(lambda *args: layer(*args).sum(), argnums=(0, 1)))(params, x)
    assert len(products(program.jaxpr)) == count


def test_dtype_is_of_the_product_and_param_dtype_of_what_is_stored():
    model = Dense(6, dtype=jnp.bfloat16, param_dtype=jnp.float16)
    x = jnp.ones((2, 4))
    variables = model.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float16)}
    assert model.apply(variables, x).dtype == jnp.bfloat16

"""Flamingo on the shared blocks: gates at 0 ignore the image, and a plain derivation agrees once they are open."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import WAYS, close, looped_gradients, measure
from toys import Flamingo

from vitvlm.core.paths import map_with_path
from vitvlm.nn.stacking import stack_blocks, unstack_blocks

B, L, S, WIDTH, HEADS = 2, 5, 4, 12, 3
MODEL = Flamingo(width=WIDTH, depth=4, heads=HEADS, mlp_width=16, vocab_size=11, activation="relu")


@functools.cache
def case():
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 11, (B, L)))
    image = jnp.asarray(rng.normal(size=(B, S, 7)), jnp.float32)
    shapes = jax.eval_shape(MODEL.clone(scan=False).init, jax.random.key(0), tokens, image)["params"]
    params = map_with_path(lambda path, leaf: (rng.normal(size=leaf.shape) * 0.4).astype(np.float32), shapes)
    return tokens, image, params, rng.normal(size=(B, L, WIDTH)).astype(np.float32)


def plain(params, tokens, image, zeros):
    """The formulas of the paper (section 3.2 and appendix A.1.2) in plain JAX; zeros are added to the weights."""

    def linear(p, x):
        return x @ p["kernel"] + p["bias"]

    def normed(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def attend(p, x, source, zeros, mask=None):
        heads = [
            linear(p[name], y).reshape(B, -1, HEADS, 4)
            for name, y in zip(("query", "key", "value"), (x, source, source))
        ]
        scores = jnp.einsum("bnkd,bmkd->bknm", *heads[:2]) / 2
        weights = jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, -1e30)) + zeros
        return linear(p["out"], jnp.einsum("bknm,bmkd->bnkd", weights, heads[2]).reshape(B, -1, WIDTH))

    def mlp(p, x):
        return linear(p["down"], jax.nn.relu(linear(p["up"], x)))

    x = params["embed"]["embedding"][tokens]
    for i in range(0, 4, 2):
        p, q = params[f"blocks_{i}"], params[f"blocks_{i + 1}"]
        looked = attend(p["cross"], normed(p["cross_norm"], x), image, zeros["cross"][i // 2])
        x = x + jnp.tanh(p["cross_gate"]) * looked
        x = x + jnp.tanh(p["mlp_gate"]) * mlp(p["mlp"], normed(p["mlp_norm"], x))
        y = normed(q["attention_norm"], x)
        x = x + attend(q["attention"], y, y, zeros["attention"][i // 2], jnp.tri(L, dtype=bool))
        x = x + mlp(q["mlp"], normed(q["mlp_norm"], x))
    return x


@functools.cache
def expected():
    tokens, image, params, direction = case()
    zeros = {"attention": jnp.zeros((2, B, HEADS, L, L)), "cross": jnp.zeros((2, B, HEADS, L, S))}

    @jax.jit
    def run(params, zeros):
        gradient = jax.grad(lambda params, zeros: jnp.vdot(plain(params, tokens, image, zeros), direction), (0, 1))
        return plain(params, tokens, image, zeros), *gradient(params, zeros)

    return jax.device_get(run(params, zeros))


@pytest.mark.parametrize("scan, remat", WAYS)
def test_open_gates_equal_the_plain_derivation(scan, remat):
    tokens, image, params, direction = case()
    model = MODEL.clone(scan=scan, remat=remat)
    found = measure(model, stack_blocks(params, {"": 2}) if scan else params, (tokens, image), direction)
    values, gradients, d_attention = expected()
    close(found["tokens"], values, "tokens")
    close(found["d_attention"], d_attention, "dL/dA")
    close(looped_gradients(found), gradients, "gradients")
    assert found["attention"]["cross"].shape == (2, B, HEADS, L, S)
    assert all(np.abs(gradients[f"blocks_{i}"]["cross"]["value"]["kernel"]).max() > 1e-3 for i in (0, 2))


def test_closed_gates_ignore_the_image_until_they_are_open():
    """As initialised: another image changes nothing and the image's branch has no gradient, but its gate has one."""
    tokens, image, params, direction = case()
    initial = unstack_blocks(jax.jit(MODEL.init)(jax.random.key(0), tokens, image)["params"])
    gates = [initial[f"blocks_{i}"][f"{name}_gate"] for i in (0, 2) for name in ("cross", "mlp")]
    np.testing.assert_array_equal(gates, 0)
    closed = map_with_path(lambda path, leaf: 0 * leaf if path.endswith("_gate") else leaf, params)
    model = MODEL.clone(scan=False)

    @jax.jit
    def run(image):
        def loss(params):
            return jnp.vdot(model.apply({"params": params}, tokens, image).tokens, direction)

        return model.apply({"params": closed}, tokens, image).tokens, jax.grad(loss)(closed)

    (one, gradients), (other, _) = run(image), run(image + 1)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(gradients["blocks_0"]["cross"]["query"]["kernel"], 0)
    assert abs(gradients["blocks_0"]["cross_gate"]) > 1e-3

"""Parameters of a small model with their roles, and trainings of them by an optimizer alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitvlm.core.durations import Clock
from vitvlm.core.paths import flatten
from vitvlm.nn.blocks import Block
from vitvlm.nn.roles import LINEAR, NORM, STACK, Role, roles_of, under
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.training import freezing, optimizer

CLOCK = Clock(batch_size=8, train_examples=80, total_steps=100)
CONSTANT = {"name": "constant", "peak": 0.1}
DEPTH = 3


class Toy:
    """Model with the roles of `make_params`' parameters, alone or in a tower; other parameters are scales."""

    roles = (
        *under("(vit/)?patches/projection/", LINEAR, "embedding"),
        *under("(vit/)?", (("cls", Role("token", "embedding")), ("positions/grid", Role("table", "embedding")))),
        *under(f"(vit/)?{STACK}", Block.roles, "block"),
        *under("(vit/)?norm/", NORM),
        *under("(vit/)?head/", LINEAR, "head"),
        *under("[a-z]/", LINEAR),
        ("[a-z]|head", Role("scale")),
    )


def make_roles(params):
    return roles_of(Toy, flatten(params))


def make_params(scan=True):
    """A little of everything that a ViT of three layers has, under its own paths."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "patches": {"projection": {"kernel": draw(5, 4)}},
        "cls": draw(4),
        "positions": {"grid": draw(2, 3, 4)},
        "blocks": {
            "mlp_norm": {"scale": draw(DEPTH, 4)},
            "mlp": {"up": {"kernel": draw(DEPTH, 4, 6), "bias": jnp.zeros((DEPTH, 6))}},
        },
        "norm": {"scale": draw(4)},
        "head": {"kernel": draw(4, 2), "bias": draw(2)},
    }
    return params if scan else unstack_blocks(params)


def gradient(params, step):
    """Gradients that change with the step and the parameters, the same for scanned and looped layers."""
    return jax.tree.map(lambda leaf: jnp.sin(3 * leaf + step) + 0.1, params)


def train(fields, params, steps=5, schedule=CONSTANT, gradient=gradient):
    """Parameters after some steps, those that are frozen as they are, and the optimizer's state."""
    tx, _ = optimizer.build(fields, schedule, params, CLOCK, make_roles(params))
    params, frozen = freezing.split(params, optimizer.trainable(fields, params))

    def update(step, carry):
        params, state = carry
        updates, state = tx.update(gradient(params, step), state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(lambda params: jax.lax.fori_loop(0, steps, update, (params, tx.init(params))))
    trained, state = jax.device_get(run(params))
    return freezing.join(trained, frozen), state


def assert_trees_close(actual, expected, rtol=1e-5, atol=1e-6):
    actual, expected = flatten(actual), flatten(expected)
    assert actual.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(actual[path], expected[path], rtol=rtol, atol=atol, err_msg=path)

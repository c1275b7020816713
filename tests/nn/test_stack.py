import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from programs import products

from vitvlm.core.config import ConfigError
from vitvlm.nn.attention import Attention
from vitvlm.nn.blocks import Block
from vitvlm.nn.calls import Call
from vitvlm.nn.mlps import Mlp
from vitvlm.nn.stack import apply_blocks
from vitvlm.nn.stacking import stack_blocks, unstack_blocks


class Stack(nn.Module):
    depth: int = 3
    scan: bool = True
    remat: str = "none"
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, tokens, train=False, capture=()):
        attention, mlp = functools.partial(Attention, 2), functools.partial(Mlp, 12)
        block = functools.partial(Block, attention, mlp)
        return apply_blocks(
            block,
            tokens,
            Call(train=train, capture=capture),
            depth=self.depth,
            scan=self.scan,
            remat=self.remat,
            drop_path=self.drop_path,
        )


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)


@pytest.fixture(scope="module")
def params(tokens):
    """Parameters of the scanned stack; biases and norms away from their initial values."""
    shapes = jax.eval_shape(Stack().init, jax.random.key(0, impl="rbg"), tokens)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3 + 0.1, jnp.float32), shapes)


def outputs_and_gradients(stack, params, tokens):
    """Returns the output with everything captured, and the gradients of a stack without capture."""

    @jax.jit
    def run(params):
        captured = stack.apply({"params": params}, tokens, capture=("hidden", "attention"))
        return captured, jax.grad(lambda params: jnp.sin(stack.apply({"params": params}, tokens).tokens).sum())(params)

    return run(params)


@pytest.fixture(scope="module")
def reference(params, tokens):
    """A plain loop."""
    return outputs_and_gradients(Stack(scan=False), unstack_blocks(params), tokens)


@pytest.mark.parametrize("scan, remat", [(True, "none"), (True, "full"), (True, "dots"), (False, "all_dots")])
def test_scan_and_remat_change_no_value_gradient_or_capture(scan, remat, params, tokens, reference):
    stack = Stack(scan=scan, remat=remat)
    stacked, gradients = outputs_and_gradients(stack, params if scan else unstack_blocks(params), tokens)
    expected, expected_gradients = reference
    assert stacked.hidden.shape == (4, 2, 5, 8)
    assert stacked.weights().shape == (3, 2, 2, 5, 5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), stacked, expected)
    looped = unstack_blocks(gradients) if scan else gradients
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), looped, expected_gradients)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_recomputes(remat, params, tokens):
    """A policy that did nothing would pass every test of values: count the matrix products of the backward pass."""

    def count(stack):
        def loss(params):
            return stack.apply({"params": params}, tokens).tokens.sum()

        return len(products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))

    assert count(Stack(remat=remat)) > count(Stack())
    assert count(Stack(remat="all_dots")) == count(Stack())


def test_captured_layers_are_the_layers(reference, tokens):
    stacked, _ = reference
    np.testing.assert_array_equal(stacked.hidden[0], tokens)
    np.testing.assert_array_equal(stacked.hidden[-1], stacked.tokens)
    np.testing.assert_allclose(stacked.weights().sum(axis=-1), 1, atol=1e-5)


def test_nothing_is_captured_unasked(params, tokens):
    stacked = jax.eval_shape(Stack().apply, {"params": params}, tokens)
    assert stacked.hidden is None
    assert stacked.attention is None


@pytest.mark.parametrize("scan", [True, False])
def test_drop_path_grows_from_zero_with_depth(scan, params, tokens):
    """Two blocks at 0 and 0.9: the first always changes an example, the second leaves most as they were."""
    two = jax.tree.map(lambda x: x[:2], params)
    stack = Stack(depth=2, scan=scan, drop_path=0.9)
    run = jax.jit(functools.partial(stack.apply, train=True, capture=("hidden",)))
    variables = {"params": two if scan else unstack_blocks(two)}
    hidden = run(variables, jnp.tile(tokens, (40, 1, 1)), rngs={"dropout": jax.random.key(0, impl="rbg")}).hidden
    unchanged = np.asarray(hidden[1:] == hidden[:-1]).all(axis=(2, 3)).mean(axis=1)
    assert unchanged[0] == 0
    assert 0.65 < unchanged[1] < 0.95


def test_each_scanned_block_starts_with_weights_of_its_own(tokens):
    kernel = jax.jit(Stack().init)(jax.random.key(0, impl="rbg"), tokens)["params"]["blocks"]["mlp"]["up"]["kernel"]
    assert (kernel[0] != kernel[1]).all()


def test_stack_inverts_unstack_in_nested_trees(params):
    tree = {"vit": {**params, "cls": jnp.ones(3)}, "decoder": params}
    looped = unstack_blocks(tree)
    assert set(looped["vit"]) == {"blocks_0", "blocks_1", "blocks_2", "cls"}
    jax.tree.map(np.testing.assert_array_equal, stack_blocks(looped), tree)


def test_stacking_with_a_layer_missing():
    looped = {"blocks_0": {"a": np.zeros(2), "b": np.zeros(2)}, "blocks_1": {"a": np.zeros(2)}}
    with pytest.raises(ValueError, match="blocks/b: no array for layer 1"):
        stack_blocks(looped)


@pytest.mark.parametrize(
    "fields, capture, message",
    [
        ({"remat": "ful"}, (), r'model\.remat: no policy \'ful\'; did you mean "full"'),
        ({"depth": 0}, (), r"model\.depth: 0 blocks"),
        ({}, ("attentions",), r'capture: nothing is called \'attentions\'; did you mean "attention"'),
        ({}, "attention", r"capture: give a tuple"),
    ],
)
def test_fields_that_no_stack_has(fields, capture, message, tokens):
    with pytest.raises(ConfigError, match=message):
        Stack(**fields).init(jax.random.key(0, impl="rbg"), tokens, capture=capture)


def test_blocks_of_stages_stay_apart():
    """A convolutional tower beside a transformer: only the latter's blocks are alike."""
    params = {
        "image": {"stages_0": {"blocks_0": {"a": np.zeros(2)}, "blocks_1": {"a": np.zeros(3)}}},
        "text": {"blocks_0": {"a": np.zeros(4)}, "blocks_1": {"a": np.ones(4)}},
    }
    stacked = stack_blocks(params)
    assert stacked["image"] == params["image"] and stacked["text"]["blocks"]["a"].shape == (2, 4)
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks(stacked), params)

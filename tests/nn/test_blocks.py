import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from vitvlm.core.config import ConfigError
from vitvlm.nn.activations import ACTIVATIONS, activation
from vitvlm.nn.attention import Attention
from vitvlm.nn.blocks import Block, drop_examples
from vitvlm.nn.calls import Call, PerLayer
from vitvlm.nn.mlps import Mlp
from vitvlm.nn.norms import make_norm


def make_block(attention_dropout=0.0, **fields):
    """A block of two heads with an MLP of width 16."""
    attention = functools.partial(Attention, 2, dropout=attention_dropout)
    return Block(attention, functools.partial(Mlp, 16), **fields)


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 8)), jnp.float32)


@pytest.mark.parametrize(
    "name, theirs",
    [
        ("gelu", torch.nn.GELU()),
        ("gelu_tanh", torch.nn.GELU(approximate="tanh")),
        ("relu", torch.nn.ReLU()),
        ("silu", torch.nn.SiLU()),
        ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    ],
)
def test_activation_equals_torch(name, theirs):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    np.testing.assert_allclose(activation(name)(x), theirs(torch.from_numpy(x)).numpy(), atol=1e-6)
    assert name in ACTIVATIONS


def test_unknown_activation_names_the_nearest():
    with pytest.raises(ConfigError, match=r"activation 'quickgelu'.*did you mean .quick_gelu"):
        activation("quickgelu")


def test_swiglu_is_the_formula_of_the_paper():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    params = Mlp(5, kind="swiglu").init(jax.random.key(0, impl="rbg"), x)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # biases too

    def linear(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    gate = np.asarray(linear("gate", x))
    expected = linear("down", gate / (1 + np.exp(-gate)) * linear("up", x))
    np.testing.assert_allclose(Mlp(5, kind="swiglu").apply({"params": params}, x), expected, atol=1e-5)


def test_layer_scale_scales_each_branch(tokens):
    scaled = make_block(layer_scale=1e-4)
    params = jax.jit(scaled.init)(jax.random.key(0, impl="rbg"), tokens)["params"]
    np.testing.assert_array_equal(params["attention_scale"], np.full(8, 1e-4, np.float32))
    np.testing.assert_array_equal(params["mlp_scale"], np.full(8, 1e-4, np.float32))

    @jax.jit
    def run(attention_scale, mlp_scale):
        scales = {"attention_scale": attention_scale, "mlp_scale": mlp_scale}
        return scaled.apply({"params": params | scales}, tokens)[0]

    zero, one = jnp.zeros(8), jnp.ones(8)
    unscaled = {name: leaf for name, leaf in params.items() if not name.endswith("_scale")}
    plain = jax.jit(make_block().apply)({"params": unscaled}, tokens)[0]
    np.testing.assert_array_equal(run(zero, zero), tokens)
    np.testing.assert_allclose(run(one, one), plain, atol=1e-6)


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    update = jnp.ones((20_000, 2, 3))
    dropped = np.asarray(drop_examples(update, 0.3, jax.random.key(0, impl="rbg")))
    assert (dropped == dropped[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    assert abs((dropped[:, 0, 0] == 0).mean() - 0.3) < 0.015
    np.testing.assert_array_equal(drop_examples(update, 0.0, jax.random.key(0, impl="rbg")), update)


@pytest.fixture(scope="module")
def variables(tokens):
    return jax.jit(make_block().init)(jax.random.key(0, impl="rbg"), tokens)


@pytest.mark.parametrize(
    "fields, drop_path", [({"dropout": 0.5}, None), ({"attention_dropout": 0.5}, None), ({}, 0.5)], ids=str
)
def test_randomness_acts_in_training_only(fields, drop_path, variables, tokens):
    @functools.partial(jax.jit, static_argnums=0)
    def run(train, seed):
        rngs = {"dropout": jax.random.key(seed, impl="rbg")}
        return make_block(**fields).apply(variables, tokens, Call(train=train), PerLayer(drop_path), rngs=rngs)[0]

    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    np.testing.assert_array_equal(run(True, 0), run(True, 0))
    assert (run(True, 0) != run(True, 1)).any()
    assert (run(True, 0) != run(False, 0)).any()


def test_a_dropped_branch_leaves_the_example_as_it_was(variables, tokens):
    many = jnp.tile(tokens, (32, 1, 1))
    call, layer = Call(train=True), PerLayer(drop_path=0.6)
    run = jax.jit(lambda rng: make_block().apply(variables, many, call, layer, rngs={"dropout": rng}))
    y = run(jax.random.key(0, impl="rbg"))[0]
    unchanged = np.asarray(y == many).all(axis=(1, 2))
    assert abs(unchanged.mean() - 0.6**2) < 0.12


@pytest.mark.parametrize("norms", ["pre", "post", "sandwich", "output"])
def test_norms_stand_where_they_are_wanted(norms, tokens):
    """The formulas of `Block`, with one linear part for each branch."""
    block = Block(functools.partial(Part, 0.5), functools.partial(Part, 2.0), norms=norms)
    params = jax.tree.map(lambda leaf: leaf + 0.3, block.init(jax.random.key(0), tokens)["params"])
    found = jax.jit(block.apply)({"params": params}, tokens)[0]

    def normed(name, x):
        x = x - x.mean(-1, keepdims=True)
        scale, bias = params[name]["scale"], params[name]["bias"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale + bias

    def added(x, name, factor):
        norm = functools.partial(normed, f"{name}_norm")
        if norms == "post":
            return norm(x + factor * x)
        if norms == "output":
            return x + norm(factor * x)
        update = factor * norm(x)
        return x + (normed(f"{name}_output_norm", update) if norms == "sandwich" else update)

    x = added(added(np.asarray(tokens), "attention", 0.5), "mlp", 2.0)
    np.testing.assert_allclose(found, x, atol=1e-5)


class Part(nn.Module):
    """Multiplies; as an attention, it returns no weights and no cache."""

    factor: float

    def __call__(self, x, *call):
        return (self.factor * x, None, None) if call else self.factor * x


@pytest.mark.parametrize(
    "kind, theirs",
    [
        ("layer", torch.nn.LayerNorm(8, eps=1e-3)),
        ("layer_without_bias", torch.nn.LayerNorm(8, eps=1e-3, bias=False)),
        ("rms", torch.nn.RMSNorm(8, eps=1e-3)),
        ("rms_zero_centred", Gemma2RMSNorm(8, eps=1e-3)),
    ],
)
def test_norms_equal_torch(kind, theirs, tokens):
    ours = make_norm(kind, 1e-3)(name=None)
    initial = ours.init(jax.random.key(0), tokens)["params"]
    np.testing.assert_array_equal(initial["scale"], 0.0 if kind == "rms_zero_centred" else 1.0)
    params = {name: leaf + np.linspace(0, 1, 8, dtype=np.float32) for name, leaf in initial.items()}
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.asarray(params["scale"])))
        if "bias" in params:
            theirs.bias.copy_(torch.tensor(np.asarray(params["bias"])))
    np.testing.assert_allclose(
        ours.apply({"params": params}, tokens), theirs(torch.tensor(np.asarray(tokens))).detach(), atol=1e-5
    )


def test_a_gated_mlp_is_geglu():
    """Shazeer 2020, equation 5, without biases."""
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    mlp = Mlp(5, kind="gated", bias=False)
    params = mlp.init(jax.random.key(0), x)["params"]
    gate, up, down = (params[name]["kernel"] for name in ("gate", "up", "down"))
    expected = (jax.nn.gelu(x @ gate, approximate=False) * (x @ up)) @ down
    np.testing.assert_allclose(mlp.apply({"params": params}, x), expected, atol=1e-5)
    assert {path for tree in params.values() for path in tree} == {"kernel"}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"norms": "sandwhich"}, r'model\.norms: .sandwhich.*did you mean "sandwich"'),
        ({"gated": ("atention",)}, r"block\.gated: no branch 'atention'"),
        ({"parallel": True, "norms": "post"}, r"block\.parallel: takes an attention and an MLP"),
        ({"mlp": functools.partial(Mlp, 4, kind="swigu")}, r"model\.mlp: no MLP 'swigu'; did you mean .swiglu"),
        ({"attention": functools.partial(Attention, 2, biases=("qery",))}, r"attention\.biases: no 'qery'"),
        ({"cross": functools.partial(Attention, 2, cross=True)}, r"cross-attention: the call has no context"),
        (
            {"attention": functools.partial(Attention, 2, cross=True, causal=True)},
            r"attention\.causal: a context has no places",
        ),
    ],
)
def test_fields_of_blocks_that_are_wrong(fields, message, tokens):
    parts = {"attention": functools.partial(Attention, 2), "mlp": functools.partial(Mlp, 4)}
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(Block(**parts | fields).init, jax.random.key(0), tokens)


def test_an_unknown_norm():
    with pytest.raises(ConfigError, match=r"model\.norm: no norm 'rsm'; did you mean .rms"):
        make_norm("rsm", 1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_under_scan_keeps_one_array(name):
    """Each layer keeps the input or the output for the gradient, not the steps between."""

    def stack(x, scales):
        return jax.lax.scan(lambda x, scale: (activation(name)(x * scale), None), x, scales)[0]

    kept = jax.eval_shape(lambda *x: jax.vjp(stack, *x)[1], jnp.ones((7, 11)), jnp.ones(5))
    of_layers = [leaf for leaf in jax.tree.leaves(kept) if leaf.shape == (5, 7, 11)]
    assert len(of_layers) <= 2  # x and x * scale

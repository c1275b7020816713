"""Low-rank adapters on a layer; `tests/parity` has their values and gradients against the `peft` package."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm.core.config import ConfigError
from vitvlm.core.paths import unflatten
from vitvlm.core.rules import RuleError
from vitvlm.nn.dense import Dense
from vitvlm.nn.lora import Adapted, Lora, attach
from vitvlm.nn.quantized import quantize
from vitvlm.nn.roles import Role
from vitvlm.training import adapters


def test_dropout_is_on_the_way_to_the_adapter_alone():
    """With a key, each input of A is dropped or scaled; the matrix itself, and DoRA's norm, see all of them."""
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    for dora in (False, True):
        lora = Lora(rank=2, alpha=3, dropout=0.5, dora=dora)
        parts = lora.fresh((6, 5), 0, jax.random.key(0), jnp.float32) | lora.fixed(())
        parts["b"] = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
        params = {"kernel": kernel, "lora": {"kernel": parts}}
        layer = Dense(5, use_bias=False)
        dropped = layer.apply({"params": attach(params, train=True)}, x, rngs={"dropout": jax.random.key(1)})
        plain = layer.apply({"params": attach(params)}, x)
        merged = np.asarray(attach(params)["kernel"].whole())
        np.testing.assert_allclose(plain, x @ merged, rtol=1e-5, atol=1e-5)
        assert np.abs(dropped - plain).max() > 0.1
        keys = jax.random.split(jax.random.key(2), 4000)
        drop = functools.partial(layer.apply, {"params": attach(params, train=True)}, x)
        many = jax.vmap(lambda key, drop=drop: drop(rngs={"dropout": key}))(keys)
        np.testing.assert_allclose(many.mean(axis=0), plain, atol=0.25)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("dora", [False, True])
def test_a_quantized_matrix_is_as_if_whole(kind, dora):
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(7, 6)), jnp.float32)
    kernel = quantize(jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), kind)
    lora = Lora(rank=2, alpha=3, dora=dora)
    parts = lora.fresh((6, 5), 0, jax.random.key(0), jnp.float32) | lora.fixed(())
    parts["b"] = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)

    def total(parts, kernel):
        y = Dense(5, use_bias=False).apply({"params": {"kernel": Adapted(kernel, **parts)}}, x)
        return (y**2).sum(), y

    gradient = jax.grad(total, has_aux=True)
    for a, b in zip(jax.tree.leaves(gradient(parts, kernel)), jax.tree.leaves(gradient(parts, kernel.whole()))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


SHAPES = {
    "embed/embedding": (30, 8),
    "blocks/attention/query/kernel": (2, 8, 6),
    "blocks/attention/query/bias": (2, 6),
    "patches/kernel": (4, 4, 3, 8),
    "head/kernel": (8, 5),
}
ROLES = {path: Role("table" if "embed" in path else "bias" if "bias" in path else "matrix") for path in SHAPES}


def planned(*rules, **fields):
    shapes = unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in SHAPES.items()})
    return adapters.plan({"rules": rules, **fields}, shapes, ROLES)


def test_rules_give_matrices_adapters():
    found = planned((".*query/kernel", {"rank": 3}), ("head/.*", None), (".*/kernel", {}), rank=2, dora=True)
    assert found == {
        "blocks/attention/query/kernel": Lora(rank=3, dora=True),
        "patches/kernel": Lora(rank=2, dora=True),
    }
    assert planned((".*query/kernel", {}), rslora=True, rank=4, alpha=8)["blocks/attention/query/kernel"].scale == 4


@pytest.mark.parametrize(
    ("rules", "fields", "message"),
    [
        ([(".*/kernel", {}), (".*query/kernel", {})], {}, "never used: '.*query/kernel"),
        ([("embed.*", {})], {}, r"embed/embedding' \[30, 8\] is no matrix, but a table"),
        ([(".*query/bias", {})], {}, r"query/bias' \[2, 6\] is no matrix, but a bias"),
        ([(".*/kernel", {"ranks": 2})], {}, 'config.lora: unknown field ranks; did you mean "rank"|ranks'),
        ([(".*/kernel", 4)], {}, "4 for 'blocks/attention/query/kernel' is neither a dictionary of fields nor None"),
        ([(".*/kernel", {})], {"rank": 0}, "config.lora.rank: 0 must be 1 or more"),
        ([(".*query/kernel", {"rank": 7})], {"rank": 2}, "rank 7 for .* is above the matrix's"),
        ([(".*/kernel", {})], {"dropout": 1.0, "rank": 2}, r"config.lora.dropout: 1.0 must lie in \[0, 1\)"),
        ([("patches/kernel", {"dropout": 0.1})], {}, "dropout for 'patches/kernel' .* only linear layers can drop"),
        ([(".*/kernel", None)], {}, "give no matrix an adapter"),
        ([], {}, "config.lora.rules: missing"),
        ([("(", {})], {}, r"config.lora.rules: '\(' is not a regular expression: missing \)"),
        ([(".*/kernel", {})], {"alpha": -1.0, "rank": 2}, "config.lora.alpha: -1.0 must be above 0"),
    ],
)
def test_wrong_rules_are_said(rules, fields, message):
    with pytest.raises((ConfigError, RuleError), match=message):
        planned(*rules, **fields)


def test_a_module_that_is_no_linear_layer_cannot_drop_inputs():
    lora = Lora(rank=2, dropout=0.5)
    parts = lora.fresh((6, 5), 0, jax.random.key(0), jnp.float32) | lora.fixed(())
    with pytest.raises(ConfigError, match="'other' is no linear layer's, which alone can drop inputs"):
        Adapted(jnp.zeros((6, 5)), **parts, path="other").unbox()

"""Frozen parameters, apart from what trains: the gradients of one tree, in every way to compute them, and storage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_training as toy
from jax.sharding import PartitionSpec

from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten, unflatten
from vitvlm.core.rules import RuleError
from vitvlm.nn.quantized import Quantized, quantize
from vitvlm.training import freezing, sharding, storage
from vitvlm.training.grad_cache import cached_gradients
from vitvlm.training.gradients import make_gradients

TRAINABLE = {"hidden": {"kernel": False, "bias": True}, "head": {"kernel": True}}


def apart():
    variables = toy.variables()
    return *freezing.split(variables["params"], TRAINABLE), {"statistics": variables["statistics"]}


def test_split_and_join():
    params = toy.variables()["params"]
    trained, frozen = freezing.split(params, TRAINABLE)
    assert set(flatten(trained)) == {"hidden/bias", "head/kernel"} and set(flatten(frozen)) == {"hidden/kernel"}
    joined = freezing.join(trained, frozen)
    assert flatten(joined).keys() == flatten(params).keys()
    jax.tree.map(np.testing.assert_array_equal, joined, params)
    assert freezing.split(params, jax.tree.map(lambda _: True, params)) == (params, {})
    assert freezing.join(params, {}) is params and freezing.join(params, None) is params


def loss(variables, batch, rng, train):
    """The toy's loss, which makes quantized matrices whole, as modules do by themselves."""
    return toy.loss({**variables, "params": storage.whole(variables["params"])}, batch, rng, train)


def squared(variables, batch, rng, train):
    value, metrics, updated = loss(variables, batch, rng, train)
    return value**2, metrics, updated


WAYS = {
    "at once": dict(losses=loss),
    "accumulated": dict(losses=loss, accumulate=2),
    "side by side": dict(losses=loss, accumulate=4, unroll=True),
    "several losses": dict(losses=[loss, squared], accumulate=2),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("how", ["float32", "int8", "nf4"])
def test_gradients_are_those_of_the_whole_tree(way, how):
    """Gradients of the parameters that train, and no others: as if all trained, with the frozen ones as stored."""
    trained, frozen, collections = apart()
    frozen = storage.store(frozen, how)
    stored = storage.whole(frozen)
    batch, rng = toy.batch_of(3), jax.random.key(2)
    found = jax.jit(make_gradients(**way))(trained, collections, batch, rng, frozen)
    wanted = jax.jit(make_gradients(**way))(freezing.join(trained, stored), collections, batch, rng)
    assert flatten(found[0]).keys() == flatten(trained).keys()
    for path, leaf in flatten(found[0]).items():
        np.testing.assert_allclose(leaf, flatten(wanted[0])[path], rtol=1e-5, atol=1e-6, err_msg=path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found[1:], wanted[1:])


def test_cached_gradients_are_those_of_the_whole_tree():
    def encode(params, batch, rng):
        params = storage.whole(params)
        return jnp.tanh(batch["image"] @ params["hidden"]["kernel"] + params["hidden"]["bias"])

    def spread(embeddings, params, batch):
        scores = embeddings @ storage.whole(params)["head"]["kernel"]
        return ((scores - scores.T) ** 2).mean() + scores.mean(), {}

    trained, frozen, _ = apart()
    frozen = storage.store(frozen, "int8")
    batch, rng = toy.batch_of(3), jax.random.key(2)
    gradients = cached_gradients(encode, spread, accumulate=4)
    found = jax.jit(gradients)(trained, {}, batch, rng, frozen)
    wanted = jax.jit(gradients)(freezing.join(trained, storage.whole(frozen)), {}, batch, rng)
    assert flatten(found[0]).keys() == flatten(trained).keys()
    for path, leaf in flatten(found[0]).items():
        np.testing.assert_allclose(leaf, flatten(wanted[0])[path], rtol=1e-5, atol=1e-6, err_msg=path)
    np.testing.assert_allclose(found[1]["loss"], wanted[1]["loss"], rtol=1e-6)


FROZEN = unflatten(
    {
        "blocks/mlp/up/kernel": jnp.ones((3, 4, 6)),
        "blocks/mlp/up/bias": jnp.ones((3, 6)),
        "patches/kernel": jnp.ones((3, 4)),
        "cls": jnp.ones(4),
    }
)


def test_storage_follows_the_first_rule_that_matches():
    rules = [("blocks/.*kernel", "nf4"), ("patches/.*", "int8"), ("cls", None), (".*", "bfloat16")]
    stored = flatten(storage.store(FROZEN, rules), storage.is_quantized)
    assert stored["blocks/mlp/up/kernel"].kind == "nf4" and stored["patches/kernel"].kind == "int8"
    assert stored["cls"].dtype == jnp.float32 and stored["blocks/mlp/up/bias"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(storage.store(FROZEN, "float16"))} == {jnp.dtype("float16")}
    assert storage.store(FROZEN, None) is FROZEN
    jax.tree.map(np.testing.assert_array_equal, storage.whole(storage.store(FROZEN, rules)), FROZEN)


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ("int4", ConfigError, r"config\.frozen_dtype: 'int4' for .*; did you mean .*int8"),
        ("int8", ConfigError, r"config\.frozen_dtype: 'blocks/mlp/up/bias': int8 is for matrices .*, not for \[6\]"),
        ([("patches/.*", "nf4"), (".*", None)], ConfigError, r"'patches/kernel': nf4 keeps inputs in pairs"),
        ([("patch/.*", "nf4"), (".*", None)], RuleError, r"config\.frozen_dtype: never used: 'patch/"),
        ([("patches/.*", "int8")], RuleError, r"config\.frozen_dtype: no rule covers"),
    ],
)
def test_wrong_rules_are_said(rules, error, message):
    with pytest.raises(error, match=message):
        storage.store(FROZEN, rules)


def test_storage_of_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"config\.frozen_dtype: nothing is frozen"):
        storage.store({}, "bfloat16")


def test_a_value_is_placed_as_what_it_replaces():
    value = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    target = quantize(jnp.ones((4, 6)), "nf4")
    found = storage.quantized_like(target, value)
    np.testing.assert_array_equal(found.whole(), quantize(jnp.asarray(value), "nf4").whole())
    assert found.values.sharding == target.values.sharding


def test_parts_of_a_matrix_lie_as_the_matrix_would_where_they_divide():
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    tree = {"mlp": {"up": {"kernel": quantize(jnp.ones((192, 6)), "nf4")}}}
    placed = sharding.shardings(tree, "fsdp+tensor", mesh)["mlp"]["up"]["kernel"]
    assert isinstance(placed, Quantized)
    assert placed.values.spec == placed.scales.spec == PartitionSpec("fsdp", "tensor")

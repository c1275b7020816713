"""Paths and parameters of patterns: scanned in groups, looped, and what trains by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm.core.paths import flatten
from vitvlm.models.qformer import QFormer
from vitvlm.nn.roles import STACK, Role, roles_of
from vitvlm.nn.stacking import is_scanned, layer_paths, periods, scanned_path, stack_blocks, unstack_blocks
from vitvlm.training.layers import depth_factors
from vitvlm.training.partial import restore


def tree(stack=""):
    """Six layers in a pattern of three; numbers say the layer."""
    layers = {f"every_{p}": {"a": np.array([[p], [p + 3]])} for p in range(3)}
    blocks = {"blocks": layers, "norm": {"scale": np.ones(1)}}
    return {stack: blocks} if stack else blocks


@pytest.mark.parametrize("stack", ["", "decoder"])
def test_a_pattern_comes_apart_in_the_order_of_its_layers(stack):
    looped = flatten(unstack_blocks(tree(stack)))
    prefix = f"{stack}/" if stack else ""
    assert {path: leaf.item() for path, leaf in looped.items() if "blocks" in path} == {
        f"{prefix}blocks_{i}/a": i for i in range(6)
    }
    together = stack_blocks(unstack_blocks(tree(stack)), {prefix: 3})
    jax.tree.map(np.testing.assert_array_equal, together, tree(stack))


def test_a_missing_layer_of_a_pattern_is_named():
    looped = unstack_blocks(tree())
    del looped["blocks_4"]
    with pytest.raises(ValueError, match="blocks/every_1/a: no array for layer 4"):
        stack_blocks(looped, {"": 3})


def test_layers_behind_the_whole_periods_of_a_pattern_stay_looped():
    looped = {f"blocks_{i}": {"a": np.array([i])} for i in range(5)}
    together = stack_blocks(looped, {"": 3})
    assert {path: leaf.tolist() for path, leaf in flatten(together).items()} == {
        **{f"blocks/every_{p}/a": [[p]] for p in range(3)},
        **{f"blocks_{i}/a": [i] for i in (3, 4)},
    }
    assert unstack_blocks(together) == looped
    roles = {
        path: roles_of(type("Declared", (), {"roles": ((STACK + "a", Role("matrix", "block")),)}), [path])[path]
        for path in flatten(together)
    }
    shapes = {path: leaf.shape for path, leaf in flatten(together).items()}
    factors = depth_factors(0.5, shapes, roles, "config.layer_decay")
    assert {path: float(np.squeeze(factor)) for path, factor in factors.items()} == {
        **{f"blocks/every_{p}/a": 0.5 ** (5 - p) for p in range(3)},
        **{f"blocks_{i}/a": 0.5 ** (5 - i) for i in (3, 4)},
    }


def test_paths_of_a_pattern():
    of_stacks = periods(flatten(tree("decoder")))
    assert of_stacks == {"decoder/": 3} and periods(["blocks/a", "blocks_1/a"]) == {}
    path = "decoder/blocks/every_1/a"
    assert is_scanned(path) and layer_paths(path, 2, of_stacks) == ["decoder/blocks_1/a", "decoder/blocks_4/a"]
    assert scanned_path("decoder/blocks_4/a", of_stacks) == path
    assert scanned_path("blocks_4/a", of_stacks) == "blocks/a"


@pytest.fixture(scope="module")
def qformer():
    """Shapes of a Q-Former's parameters, with every other layer's cross-attention."""
    model = QFormer(width=8, depth=4, heads=2, mlp_width=12, queries=2, vocab_size=9, length=6)
    inputs = jnp.ones((1, 4, 6)), jnp.ones((1, 3), int)
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def test_every_parameter_of_a_pattern_has_its_role(qformer):
    roles = roles_of(QFormer, flatten(qformer))
    assert roles["blocks/every_0/cross/query/kernel"].is_hidden_matrix
    assert roles["blocks/every_1/text_mlp_norm/scale"].kind == "norm"


def test_layers_of_a_pattern_have_the_rates_of_their_depth(qformer):
    shapes = {path: leaf.shape for path, leaf in flatten(qformer).items()}
    roles = roles_of(QFormer, shapes)
    factors = depth_factors(0.5, shapes, roles, "config.layer_decay")
    np.testing.assert_allclose(factors["blocks/every_0/attention/query/kernel"], [0.5**4, 0.5**2])
    np.testing.assert_allclose(factors["blocks/every_1/attention/query/kernel"], [0.5**3, 0.5])
    assert factors["embed_norm/scale"] == 0.5**5


@pytest.mark.parametrize("looped", [True, False])
def test_a_pattern_starts_from_another_of_either_form(qformer, looped):
    rng = np.random.default_rng(0)
    source = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), qformer)
    target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), qformer)
    found = restore(target, unstack_blocks(source) if looped else source, [("(.*)", r"\1")], {})
    jax.tree.map(np.testing.assert_array_equal, found, source)

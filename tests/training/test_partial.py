"""Parameters taken from another model by rules over paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.core.rules import RuleError
from vitvlm.models.swin import Swin
from vitvlm.models.vit import ViT
from vitvlm.nn.roles import Role, roles_of
from vitvlm.nn.stacking import stack_blocks, unstack_blocks
from vitvlm.training import partial, sharding

SIZES = {"width": 8, "depth": 3, "heads": 2, "mlp_width": 12, "patch_size": 4, "image_size": (8, 12)}


def random_params(name, seed, **fields):
    """Parameters of a tiny model, in NumPy, none of them equal to another model's."""
    model = models.build(name, **(SIZES | fields))
    rngs = {"params": jax.random.key(0), "mask": jax.random.key(0)}
    shapes = jax.eval_shape(model.init, rngs, jnp.zeros((1, 8, 12, 3)))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def vit(seed=1, **fields):
    return random_params("vit", seed, num_classes=5, **fields)


def mae(seed=2, **fields):
    return random_params("mae", seed, decoder_width=8, decoder_depth=1, decoder_heads=2, **fields)


class Either:
    """Roles of the models here; of what neither has, none in particular."""

    roles = (*ViT.roles, *Swin.roles, (".*", Role("scale")))


def restore(params, source, rules, **fields):
    return partial.restore(params, source, rules, roles_of(Either, flatten(params)), **fields)


FROM_MAE = [("head/.*|positions/.*", None), ("(.*)", r"vit/\1")]


@pytest.mark.parametrize("target_scan", [True, False])
@pytest.mark.parametrize("source_scan", [True, False])
def test_a_classifier_from_an_autoencoder(target_scan, source_scan):
    target, source = vit(scan=target_scan), mae(scan=source_scan)
    restored = restore(target, source, FROM_MAE, ignore=["decoder/.*"])

    assert jax.tree.structure(restored) == jax.tree.structure(target)
    source, target = stack_blocks(source), stack_blocks(target)
    for path, leaf in flatten(stack_blocks(restored)).items():
        kept = path.startswith(("head", "positions"))
        expected = flatten(target)[path] if kept else flatten(source)[f"vit/{path}"]
        np.testing.assert_array_equal(leaf, expected, err_msg=path)


def test_another_patch_size_gives_what_the_model_called_with_it_gives():
    source, target = vit(), vit(patch_size=(2, 6))
    restored = restore(target, source, [("(.*)", r"\1")])
    images = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    sizes = SIZES | {"num_classes": 5}
    moved = models.build("vit", **sizes | {"patch_size": (2, 6)}).apply({"params": restored}, images)
    called = models.build("vit", **sizes).apply({"params": source}, images, patch_size=(2, 6))
    np.testing.assert_allclose(moved.logits, called.logits, atol=1e-4)


@pytest.mark.parametrize("grid", [(2, 3), (5, 4), (1, 7)])
def test_positions_are_resampled_as_by_torch(grid):
    source, target = vit(image_size=(16, 20)), vit(image_size=(4 * grid[0], 4 * grid[1]))
    restored = restore(target, source, [("(.*)", r"\1")])

    table = torch.from_numpy(source["positions"]["grid"]).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(table, grid, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    np.testing.assert_allclose(restored["positions"]["grid"], expected.numpy(), atol=1e-4)
    np.testing.assert_array_equal(restored["positions"]["cls"], source["positions"]["cls"])


@pytest.mark.parametrize("window", [2, 6])
def test_relative_positions_are_resampled_for_another_window_as_by_torch(window):
    sizes = {"width": 8, "depths": (1, 1), "heads": (2, 4), "patch_size": 1}
    source, target = (models.build("swin", **sizes, window=side) for side in (3, window))
    shapes = [
        jax.eval_shape(each.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"] for each in (source, target)
    ]
    rng = np.random.default_rng(0)
    source, target = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    restored, source = (flatten(tree) for tree in (restore(target, source, [("(.*)", r"\1")]), source))
    for path, leaf in restored.items():
        expected = source[path]
        if path.endswith("relative_positions"):
            table = torch.from_numpy(expected.T.reshape(1, -1, 5, 5))
            new = 2 * (2 * window - 1,)
            table = torch.nn.functional.interpolate(table, new, mode="bicubic", align_corners=False)
            expected = table[0].flatten(1).numpy().T
        np.testing.assert_allclose(leaf, expected, atol=1e-5, err_msg=path)


def test_an_equal_grid_is_copied_bit_by_bit():
    source = vit(seed=5)
    restored = restore(vit(), source, [("(.*)", r"\1")])
    for path, leaf in flatten(restored).items():
        np.testing.assert_array_equal(leaf, flatten(source)[path], err_msg=path)


def test_the_first_rule_that_matches_wins():
    target, source = vit(), vit(seed=5)
    rules = [("head/bias", None), ("norm/scale", "blocks_1/mlp_norm/scale"), ("(.*)", r"\1")]
    restored = restore(target, unstack_blocks(source), rules, ignore=["head/bias", "norm/scale"])
    np.testing.assert_array_equal(restored["head"]["bias"], target["head"]["bias"])
    np.testing.assert_array_equal(restored["norm"]["scale"], source["blocks"]["mlp_norm"]["scale"][1])
    np.testing.assert_array_equal(restored["head"]["kernel"], source["head"]["kernel"])


def test_a_shallow_model_from_the_first_layers_of_a_deep_one():
    source = vit(seed=5, depth=5)
    restored = restore(vit(), source, [("(.*)", r"\1")], ignore=["blocks/.*"])
    np.testing.assert_array_equal(restored["blocks"]["mlp_norm"]["scale"], source["blocks"]["mlp_norm"]["scale"][:3])
    with pytest.raises(ConfigError) as error:
        restore(vit(), source, [("(.*)", r"\1")])
    assert "unused, and not in ignore: blocks_3/" in str(error.value) and "blocks_4/mlp/up/kernel" in str(error.value)
    assert "blocks_2" not in str(error.value)


def test_values_take_dtype_and_sharding_of_the_parameters_they_replace():
    mesh = sharding.make_mesh({"data": 1}, devices=jax.devices()[:1])
    place = NamedSharding(mesh, PartitionSpec())
    target = jax.device_put({"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.ones(2)}, place)
    restored = restore(target, {"a": np.arange(3.0)}, [("a", "a"), ("b", None)])
    assert restored["a"].dtype == jnp.bfloat16 and restored["a"].sharding == place
    np.testing.assert_array_equal(restored["a"].astype(np.float32), [0, 1, 2])
    assert restored["b"] is target["b"]


def test_every_problem_is_listed_at_once():
    target = {"a": np.zeros(2), "b": np.zeros((2, 3)), "c": np.zeros(4), "d": {"e": np.zeros(5)}}
    source = {"a": np.ones(2), "b": np.ones((3, 2)), "d": {"e": np.ones(6)}, "x": np.ones(1), "y": {"z": np.ones(1)}}
    with pytest.raises(ConfigError) as error:
        restore(target, source, [("(.*)", r"\1")], where="config.init_from.rules")
    assert str(error.value) == (
        "config.init_from.rules: no source for c <- c; of another shape: b (2, 3) <- b (3, 2), d/e (5,) <- d/e (6,); "
        "unused, and not in ignore: x, y/z"
    )


def test_missing_layers_are_named():
    source = unstack_blocks(vit(seed=5))
    del source["blocks_1"]["mlp"]["up"]["bias"]
    with pytest.raises(ConfigError, match=r"no source for blocks/mlp/up/bias <- blocks_1/mlp/up/bias$"):
        restore(vit(), source, [("(.*)", r"\1")])


def test_another_grid_of_another_width_is_misshapen():
    target, source = vit(image_size=(8, 8)), vit(image_size=(16, 16), width=12)
    with pytest.raises(ConfigError, match=r"positions/grid \(2, 2, 8\) <- positions/grid \(4, 4, 12\)"):
        restore(target, source, [("(.*)", r"\1")])


@pytest.mark.parametrize(
    ("rules", "ignore", "message"),
    [
        ([("a", "a")], [], r"no rule covers 'b'"),
        ([("(.*)", r"\1"), ("a", "b")], [], r"never used: 'a'"),
        ([("(.*)", r"\2")], [], r"template '\\\\2' does not fit the regex '\(\.\*\)'"),
        ([("a(", "a"), (".*", None)], [], r"'a\(' is not a regular expression"),
        ([("(.*)", r"\1")], ["z.*"], r"ignore 'z\.\*' matches no unused source"),
    ],
)
def test_rules_that_do_not_fit_are_errors(rules, ignore, message):
    params = {"a": np.zeros(2), "b": np.zeros(2)}
    with pytest.raises(RuleError, match=r"config\.init_from\.rules: .*" + message):
        restore(params, params, rules, ignore=ignore)

"""Optimizers by rules over paths: weight decay, rates, frozen parameters, layer by layer; and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_optimizer import CLOCK, CONSTANT, DEPTH, make_params, make_roles, train

from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.core.rules import RuleError
from vitvlm.nn.roles import Role
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.training import methods, optimizer

PLAIN = {"name": "sgd", "momentum": 0.0}


def ones(params, _):
    return jax.tree.map(jnp.ones_like, params)


def zeros(params, _):
    return jax.tree.map(jnp.zeros_like, params)


def test_only_kernels_decay_by_default():
    params = make_params()
    trained, _ = train(PLAIN | {"weight_decay": 0.5}, params, steps=1, gradient=zeros)
    expected = {path: leaf * (0.95 if path.endswith("kernel") else 1.0) for path, leaf in flatten(params).items()}
    for path, leaf in flatten(trained).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-6, err_msg=path)


def test_weight_decay_rules_are_factors():
    params = make_params()
    decay_rules = [("head/.*", 2.0), ("positions/.*", 1.0), (".*", 0.0)]
    trained, _ = train(
        PLAIN | {"weight_decay": 0.5, "weight_decay_rules": decay_rules}, params, steps=1, gradient=zeros
    )
    for path, leaf in flatten(trained).items():
        factor = {"head": 0.9, "positions": 0.95}.get(path.split("/")[0], 1.0)
        np.testing.assert_allclose(leaf, flatten(params)[path] * factor, rtol=1e-6, err_msg=path)


def test_lr_rules_scale_update_and_decay_alike():
    """As in PyTorch's parameter groups, where decay is multiplied by the group's learning rate."""
    params = make_params()
    fields = {"name": "adamw", "weight_decay": 0.5}
    once, _ = train(fields, params, steps=1)
    scaled, _ = train(fields | {"lr_rules": [("head/.*", 10.0), (".*", 0.5)]}, params, steps=1)
    for path, start in flatten(params).items():
        factor = 10.0 if path.startswith("head") else 0.5
        moved = flatten(once)[path] - start
        np.testing.assert_allclose(flatten(scaled)[path] - start, factor * moved, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("scan", [True, False])
def test_layer_decay_equals_the_formula_of_mae(scan):
    """Rate of layer l of L: decay^(L + 1 - l); embeddings are layer 0, the head and the final norm layer L + 1."""
    params = make_params(scan)
    trained, _ = train(PLAIN | {"layer_decay": 0.5}, params, steps=1, gradient=ones)
    moved = jax.tree.map(lambda before, after: before - after, params, trained)
    for path, change in flatten(moved if not scan else unstack_blocks(moved)).items():
        group = path.split("/")[0]
        layer = int(group.split("_")[1]) + 1 if group.startswith("blocks") else DEPTH + 1
        if group in ("patches", "cls", "positions"):
            layer = 0
        np.testing.assert_allclose(change, 0.1 * 0.5 ** (DEPTH + 1 - layer), rtol=1e-3, err_msg=path)


def test_layer_decay_finds_the_stack_under_a_prefix():
    params = {"vit": make_params(), "head": {"kernel": jnp.ones((4, 2))}}
    trained, _ = train(PLAIN | {"layer_decay": 0.5}, params, steps=1, gradient=ones)
    np.testing.assert_allclose(params["head"]["kernel"] - trained["head"]["kernel"], 0.1, rtol=1e-4)
    np.testing.assert_allclose(params["vit"]["cls"] - trained["vit"]["cls"], 0.1 * 0.5**4, rtol=1e-3)
    np.testing.assert_allclose(params["vit"]["head"]["bias"] - trained["vit"]["head"]["bias"], 0.1, rtol=1e-4)


def test_layer_decay_without_blocks_is_an_error():
    with pytest.raises(ConfigError, match=r"config\.optimizer\.layer_decay: this model has no blocks to count"):
        optimizer.build(PLAIN | {"layer_decay": 0.5}, CONSTANT, {"a": jnp.ones(3)}, CLOCK, {"a": Role("scale")})


FREEZE = [("patches/.*|cls|positions/.*|blocks/.*", True), (".*", False)]


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_frozen_parameters_keep_every_bit_and_have_no_state(name):
    params = make_params()
    params["cls"] = jnp.array([0.0, -0.0, 1e-42, jnp.inf])
    trained, state = train({"name": name, "freeze": FREEZE, "weight_decay": 0.1}, params)
    for path, leaf in flatten(params).items():
        same = np.array_equal(np.asarray(leaf).view(np.uint32), np.asarray(flatten(trained)[path]).view(np.uint32))
        assert same == path.startswith(("patches", "cls", "positions", "blocks")), path
    assert flatten(trained).keys() == flatten(params).keys()
    assert not [path for path in flatten(state) if "blocks" in path or "patches" in path]
    assert [path for path in flatten(state) if path.endswith("head/kernel")]


def test_clipping_sees_trainable_gradients_only():
    """Two trainable gradients of norm 3 and 4 are clipped to norm 1; what is frozen has none that could count."""
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1), "c": jnp.zeros(1)}
    fields = PLAIN | {"clip_norm": 1.0, "freeze": [("c", True), (".*", False)]}
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    trained, _ = train(fields, params, steps=1, gradient=lambda *_: gradients)
    np.testing.assert_allclose([trained["a"][0], trained["b"][0], trained["c"][0]], [-0.06, -0.08, 0.0], rtol=1e-5)


def test_small_gradients_are_not_clipped():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([0.3]), "b": jnp.array([0.4])}
    trained, _ = train(PLAIN | {"clip_norm": 1.0}, params, steps=1, gradient=lambda *_: gradients)
    np.testing.assert_allclose([trained["a"][0], trained["b"][0]], [-0.03, -0.04], rtol=1e-6)


def test_learning_rate_follows_the_schedule():
    params = {"a": jnp.zeros(())}
    schedule = {"name": "linear", "peak": 1.0, "warmup": 4}
    tx, rate = optimizer.build(PLAIN, schedule, params, CLOCK, make_roles(params))
    state = tx.init(params)
    for step in range(8):
        updates, state = tx.update({"a": jnp.ones(())}, state, params)
        np.testing.assert_allclose(updates["a"], -rate(step))
    np.testing.assert_allclose(rate(4), 1.0)


def test_moments_in_bfloat16_on_request():
    _, state = train({"name": "adamw", "mu_dtype": "bfloat16"}, make_params(), steps=1)
    assert {str(leaf.dtype) for path, leaf in flatten(state).items() if "/mu/" in path} == {"bfloat16"}
    assert {str(leaf.dtype) for path, leaf in flatten(state).items() if "/nu/" in path} == {"float32"}


def test_trainable_is_the_complement_of_freeze():
    params = make_params()
    tree = optimizer.trainable({"name": "sgd", "freeze": FREEZE}, params)
    assert {path for path, on in flatten(tree).items() if on} == {"norm/scale", "head/kernel", "head/bias"}
    assert all(flatten(optimizer.trainable({"name": "sgd"}, params)).values())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"name": "adam"}, ConfigError, r'config\.optimizer\.name: no optimizer .adam.; did you mean "adamw"\?'),
        ({"b2": 0.9}, ConfigError, r"config\.optimizer\.name: missing; there is: adafactor, adamw"),
        ({"name": "adamw", "beta2": 0.9}, ConfigError, r"config\.optimizer\.beta2: no such field"),
        ({"name": "adamw", "momentum": 0.9}, ConfigError, r"config\.optimizer\.momentum: no such field"),
        ({"name": "sgd", "momentun": 0.9}, ConfigError, r'momentun: no such field; did you mean "momentum"\?'),
        ({"name": "sgd", "clipnorm": 1.0}, ConfigError, r'clipnorm: no such field; did you mean "clip_norm"\?'),
        ({"name": "sgd", "clip_norm": 0.0}, ConfigError, r"\.clip_norm: 0.0 is not above 0"),
        ({"name": "sgd", "decay": 0.0}, ConfigError, r"decay: no such field"),
        ({"name": "sgd", "layer_decay": 0.0}, ConfigError, r"\.layer_decay: 0.0 is not above 0"),
        ({"name": "sgd", "freeze": [("head/.*", True)]}, RuleError, r"config\.optimizer\.freeze: no rule covers"),
        ({"name": "sgd", "freeze": [("haed/.*", True), (".*", False)]}, RuleError, r"freeze: never used: 'haed"),
        ({"name": "sgd", "freeze": [(".*", True)]}, ConfigError, r"freeze: freezes every parameter"),
        ({"name": "sgd", "freeze": [(".*", "yes")]}, ConfigError, r"freeze: 'yes' for .* is neither True nor False"),
        (
            {"name": "sgd", "lr_rules": [("head/.*", 0.0), (".*", 1.0)]},
            ConfigError,
            r"lr_rules: 0 for 'head/.* freeze it",
        ),
        ({"name": "sgd", "lr_rules": [(".*", "half")]}, ConfigError, r"lr_rules: 'half' for .* is not a number"),
        (
            {"name": "sgd", "weight_decay_rules": [(".*", -1.0)]},
            ConfigError,
            r"decay_rules: -1.0 for .* is not a number",
        ),
        ({"name": "sgd", "lr_rules": [("head/.*", 2.0)]}, RuleError, r"lr_rules: no rule covers"),
        ({"name": "sgd", "weight_decay_rules": [(".*", 1.0), ("cls", 0.0)]}, RuleError, r"never used: 'cls'"),
        (
            {"name": "sgd", "freeze": [("cls", True), (".*", False)], "lr_rules": [("cls", 2.0), (".*", 1.0)]},
            RuleError,
            r"lr_rules: never used: 'cls'",
        ),
    ],
)
def test_wrong_sections_are_errors_that_name_the_field(fields, error, message):
    with pytest.raises(error, match=message):
        optimizer.build(fields, CONSTANT, make_params(), CLOCK, make_roles(make_params()))

"""Optimizers against torch.optim and NumPy re-derivations, and rules over paths, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from vitvlm.core.config import ConfigError
from vitvlm.core.durations import Clock
from vitvlm.core.paths import flatten
from vitvlm.core.rules import RuleError
from vitvlm.nn.blocks import Block
from vitvlm.nn.roles import LINEAR, NORM, STACK, Role, roles_of, under
from vitvlm.nn.stacking import stack_blocks, unstack_blocks
from vitvlm.training import freezing, methods, optimizer

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


def train_torch(make, params, steps=5, lr=0.1):
    """The same training by torch.optim: kernels decay, and nothing else."""
    tensors = {path: torch.tensor(np.asarray(leaf), requires_grad=True) for path, leaf in flatten(params).items()}
    groups = [
        {"params": [t for path, t in tensors.items() if path.endswith("kernel")]},
        {"params": [t for path, t in tensors.items() if not path.endswith("kernel")], "weight_decay": 0.0},
    ]
    optim = make(groups, lr)
    for step in range(steps):
        for tensor in tensors.values():
            tensor.grad = torch.sin(3 * tensor.detach() + step) + 0.1
        optim.step()
    return {path: tensor.detach().numpy() for path, tensor in tensors.items()}


def assert_equals_torch(fields, make):
    params = make_params()
    actual, _ = train(fields, params)
    expected = train_torch(make, params)
    for path, leaf in flatten(actual).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-5, err_msg=path)


def test_adamw_equals_torch():
    assert_equals_torch(
        {"name": "adamw", "b1": 0.8, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.3},
        lambda groups, lr: torch.optim.AdamW(groups, lr, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3),
    )


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_torch(nesterov):
    assert_equals_torch(
        {"name": "sgd", "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.3},
        lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.9, nesterov=nesterov, weight_decay=0.3),
    )


def test_sgd_without_momentum_equals_torch_and_keeps_no_moments():
    assert_equals_torch({"name": "sgd", "momentum": 0.0}, lambda groups, lr: torch.optim.SGD(groups, lr))
    _, state = train({"name": "sgd", "momentum": 0.0}, make_params(), steps=1)
    assert all(leaf.ndim == 0 for leaf in jax.tree.leaves(state))


def test_adafactor_equals_torch():
    """torch.optim.Adafactor has parameter scaling and clipping built in, and factors every matrix."""
    kernels = {"a": {"kernel": make_params()["head"]["kernel"]}, "b": {"kernel": make_params()["cls"]}}
    fields = {"name": "adafactor", "weight_decay": 0.3, "min_dim_size_to_factor": 1}
    actual, _ = train(fields, kernels)
    expected = train_torch(
        lambda groups, lr: torch.optim.Adafactor(groups, lr, weight_decay=0.3, eps=(1e-15, 1e-3), d=1.0), kernels
    )
    for path, leaf in flatten(actual).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, err_msg=path)


def adam(grad, slots, step, b1=0.9, b2=0.999, eps=1e-6):
    slots["m"] = b1 * slots.get("m", 0.0) + (1 - b1) * grad
    slots["v"] = b2 * slots.get("v", 0.0) + (1 - b2) * grad**2
    return slots["m"] / (1 - b1**step) / (np.sqrt(slots["v"] / (1 - b2**step)) + eps)


def trust(param, update):
    norms = np.linalg.norm(param), np.linalg.norm(update)
    return norms[0] / norms[1] if min(norms) > 0 else 1.0


def numpy_lamb(param, grad, slots, step, decay):
    update = adam(grad, slots, step) + decay * param
    return trust(param, update) * update


def numpy_lars(param, grad, slots, step, decay):
    update = grad + decay * param
    if param.ndim > 1:
        update = 0.001 * trust(param, update) * update
    slots["m"] = 0.9 * slots.get("m", 0.0) + update
    return slots["m"]


def numpy_lion(param, grad, slots, step, decay):
    momentum = slots.get("m", np.zeros_like(grad))
    slots["m"] = 0.99 * momentum + 0.01 * grad
    return np.sign(0.9 * momentum + 0.1 * grad) + decay * param


def numpy_muon(param, grad, slots, step, decay):
    if not slots["is_hidden"]:
        b1, b2 = 0.9, 0.999  # Adam with Nesterov's momentum (Dozat 2016)
        adam(grad, slots, step)
        mean = b1 * slots["m"] / (1 - b1 ** (step + 1)) + (1 - b1) * grad / (1 - b1**step)
        return mean / (np.sqrt(slots["v"] / (1 - b2**step)) + 1e-8) + decay * param
    slots["m"] = 0.95 * slots.get("m", 0.0) + 0.05 * grad
    x = 0.95 * slots["m"] / (1 - 0.95 ** (step + 1)) + 0.05 * grad / (1 - 0.95**step)
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return 0.2 * np.sqrt(max(x.shape)) * x + decay * param


@pytest.mark.parametrize("derivation", [numpy_lamb, numpy_lars, numpy_lion, numpy_muon])
def test_equals_numpy_derivation(derivation):
    params = make_params(scan=False)
    fields = {"name": derivation.__name__.removeprefix("numpy_"), "weight_decay": 0.3}
    actual, _ = train(fields, params)

    for path, leaf in flatten(params).items():
        slots = {
            "is_kernel": path.endswith("kernel"),
            "is_hidden": path.startswith("blocks") and path.endswith("kernel"),
        }
        param = np.asarray(leaf, np.float64)
        for step in range(5):
            grad = np.sin(3 * param + step) + 0.1
            param = param - 0.1 * derivation(param, grad, slots, step + 1, 0.3 * slots["is_kernel"])
        np.testing.assert_allclose(flatten(actual)[path], param, rtol=1e-3, atol=1e-4, err_msg=path)


def test_muon_equals_torch():
    """torch.optim.Muon computes in bfloat16: about two digits of each update."""
    params = {"a": {"kernel": make_params()["patches"]["projection"]["kernel"]}}
    fields = {"name": "muon", "nesterov": False, "weight_decay": 0.3}
    actual, _ = train(fields, params, steps=3)
    expected = train_torch(
        lambda groups, lr: torch.optim.Muon(
            groups[:1], lr, weight_decay=0.3, nesterov=False, adjust_lr_fn="match_rms_adamw"
        ),
        params,
        steps=3,
    )
    np.testing.assert_allclose(actual["a"]["kernel"], expected["a/kernel"], atol=3e-3)


@pytest.mark.parametrize("name", ["adafactor", "adamw", "lamb", "lars", "muon"])
def test_scanned_layers_train_as_looped_ones(name):
    fields = {"name": name, "weight_decay": 0.1, "layer_decay": 0.7, "clip_norm": 1.0}
    if name == "adafactor":
        fields["min_dim_size_to_factor"] = 2
    scanned, _ = train(fields, make_params(scan=True), steps=4)
    looped, _ = train(fields, make_params(scan=False), steps=4)
    assert_trees_close(scanned, stack_blocks(looped))
    assert_trees_close(unstack_blocks(scanned), looped)


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_a_zero_gradient_moves_nothing(name):
    params = make_params()
    trained, _ = train({"name": name, "clip_norm": 1.0}, params, gradient=lambda p, _: jax.tree.map(jnp.zeros_like, p))
    assert_trees_close(trained, params, rtol=0, atol=0)


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

"""Optimizers against torch.optim and NumPy re-derivations, on scanned and looped layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from toy_optimizer import assert_trees_close, make_params, train

from vitvlm.core.paths import flatten
from vitvlm.nn.stacking import stack_blocks, unstack_blocks
from vitvlm.training import methods


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

"""Batch norm and padding against PyTorch, in float32 and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.errors import ModifyScopeVariableError

from vitvlm.nn.convolutions import BatchNorm, ConvNorm


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def channels_last(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.fixture(scope="module")
def norms():
    """PyTorch's batch norm and ours, with the same parameters and statistics."""
    theirs = torch.nn.BatchNorm2d(5, eps=1e-2, momentum=0.3)
    ours = BatchNorm(eps=1e-2, momentum=0.7)
    scale, bias, mean, var = normal(0, 5), normal(1, 5), normal(2, 5), np.exp(normal(3, 5))
    tensors = (theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var)
    for tensor, value in zip(tensors, (scale, bias, mean, var)):
        tensor.data.copy_(torch.from_numpy(value))
    return theirs, ours, {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (1, 1, 2, 5)], ids=str)
def test_batch_norm_equals_pytorchs(norms, shape):
    theirs, ours, variables = norms
    x = 2 * normal(4, *shape) + 1
    theirs.eval()
    np.testing.assert_allclose(ours.apply(variables, x), channels_last(theirs(channels_first(x))), atol=1e-5)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    theirs.train()
    expected = channels_last(theirs(channels_first(x)))
    found, updated = ours.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], theirs.running_mean, atol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], theirs.running_var, rtol=1e-5)
    theirs.load_state_dict(before)


def test_statistics_of_bfloat16_activations_are_float32(norms):
    _, _, variables = norms
    ours = BatchNorm(eps=1e-2, dtype=jnp.bfloat16)
    x = jnp.asarray(normal(4, 64, 8, 8, 5) + 100, jnp.bfloat16)
    y, updated = jax.jit(lambda x: ours.apply(variables, x, train=True, mutable=["batch_stats"]))(x)
    assert y.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    expected = 0.9 * variables["batch_stats"]["var"] + 0.1 * wide.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(updated["batch_stats"]["var"], expected, rtol=1e-4)  # E[x²] - E[x]² would be 1e-3 off


def test_running_statistics_keep_their_dtype(norms):
    _, ours, variables = norms
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), variables)
    updated = jax.eval_shape(lambda: ours.apply(half, jnp.ones((2, 5)), train=True, mutable=["batch_stats"]))[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.bfloat16)}


def test_training_without_a_place_for_the_statistics_is_an_error(norms):
    _, ours, variables = norms
    with pytest.raises(ModifyScopeVariableError, match="batch_stats"):
        ours.apply(variables, jnp.ones((2, 5)), train=True)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "depthwise"),
    [(1, 1, None, False), (3, 2, None, False), (7, 2, None, False), (5, 2, (1, 2), True), (3, 1, None, True)],
    ids=str,
)
def test_padding_and_groups_equal_pytorchs(kernel, stride, padding, depthwise):
    x = normal(0, 2, 9, 12, 4)
    features, groups = (4, 4) if depthwise else (6, 1)
    before, after = padding or (kernel // 2, kernel // 2)
    weight = normal(1, features, 4 // groups, kernel, kernel)
    padded = torch.nn.functional.pad(channels_first(x), (before, after, before, after))
    expected = torch.nn.functional.conv2d(padded, torch.from_numpy(weight), stride=stride, groups=groups)
    ours = ConvNorm(None if depthwise else features, kernel, stride, padding, activation="relu", norm_eps=0.0)
    ones, zeros = np.ones(features, np.float32), np.zeros(features, np.float32)
    variables = {
        "params": {"conv": {"kernel": weight.transpose(2, 3, 1, 0)}, "norm": {"scale": ones, "bias": zeros}},
        "batch_stats": {"norm": {"mean": zeros, "var": ones}},
    }
    found = jax.jit(ours.apply)(variables, x)
    np.testing.assert_allclose(found, channels_last(expected.relu()), atol=1e-4)

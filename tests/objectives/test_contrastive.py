"""Contrastive objectives against PyTorch, in blocks against whole, and what must not change them."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import BIAS, SCALE, assert_equal, make_pairs, objective, value_and_gradients

from vitvlm.core.config import ConfigError
from vitvlm.objectives import chunked, contrastive

NAMES = ["softmax", "smoothed", "sigmoid"]


def torch_loss(name, image, text, scale, bias, mask):
    """The same over the real rows alone."""
    image, text = image[mask > 0], text[mask > 0]
    logits = scale * image @ text.T
    if name == "sigmoid":
        signs = 2 * torch.eye(len(logits), dtype=torch.float64) - 1
        return -torch.nn.functional.logsigmoid(signs * (logits + bias)).sum() / len(logits)
    labels, smoothing = torch.arange(len(logits)), {"softmax": 0.0, "smoothed": 0.1}[name]
    to_text = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    return (to_text + torch.nn.functional.cross_entropy(logits.T, labels, label_smoothing=smoothing)) / 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "padding"), [(1, 0), (7, 0), (9, 4), (5, 4)])
def test_values_and_gradients_equal_torch(name, size, padding):
    image, text, mask = make_pairs(size, padding=padding)
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (image, text, SCALE, BIAS)]
    expected = torch_loss(name, *inputs, torch.from_numpy(mask))
    gradients = torch.autograd.grad(expected, inputs, allow_unused=True, materialize_grads=True)
    found = value_and_gradients(name)(image, text, SCALE, BIAS, mask)
    assert found[0].dtype == np.float32
    assert_equal(found, (expected.item(), tuple(gradient.numpy() for gradient in gradients)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "padding", "block"), [(7, 2, 3), (7, 0, 1), (8, 3, 4), (5, 1, 9), (6, 2, None)])
def test_blocks_equal_the_whole(name, size, padding, block):
    image, text, mask = make_pairs(size, padding=padding)
    arguments = (image, text, SCALE, BIAS, mask)
    assert_equal(value_and_gradients(name, block=block)(*arguments), value_and_gradients(name)(*arguments))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", [{}, {"block": 2}])
def test_nothing_comes_from_padding(name, where):
    image, text, mask = make_pairs(6, padding=2)
    expected = value_and_gradients(name, **where)(image, text, SCALE, BIAS, mask)
    image[mask == 0], text[mask == 0] = np.nan, np.inf
    assert_equal(value_and_gradients(name, **where)(image, text, SCALE, BIAS, mask), expected)
    assert not np.any(expected[1][0][mask == 0]) and not np.any(expected[1][1][mask == 0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", [{}, {"block": 2}])
def test_a_batch_of_padding_loses_nothing(name, where):
    image, text, mask = make_pairs(4, padding=4)
    found = value_and_gradients(name, **where)(image, text, SCALE, BIAS, mask)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))  # a NaN would be true


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", [{}, {"block": 2}])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_temperatures_stay_finite(name, where, sign):
    image, _, mask = make_pairs(6)
    found = value_and_gradients(name, **where)(image, sign * image, np.float32(1000), BIAS, mask)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_order_of_pairs_changes_nothing(name, data):
    size, block = 6, data.draw(st.sampled_from([None, 4]))
    image, text, mask = make_pairs(size, padding=data.draw(st.integers(0, 3)), seed=data.draw(st.integers(0, 99)))
    order = np.array(data.draw(st.permutations(range(size))))
    loss = value_and_gradients(name, **({"block": block} if block else {}))
    value, (image_gradient, *others) = loss(image, text, SCALE, BIAS, mask)
    found, (found_image_gradient, *_) = loss(image[order], text[order], SCALE, BIAS, mask[order])
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found_image_gradient, image_gradient[order], atol=1e-5)


def test_a_uniform_softmax_loses_the_logarithm_of_the_batch():
    image, text, mask = make_pairs(8, padding=3)
    np.testing.assert_allclose(contrastive.softmax(image, text, 0.0, mask), np.log(5), rtol=1e-6)


def test_half_precision_embeddings_give_float32():
    image, text, mask = make_pairs(6)
    for name in NAMES:
        half = [side.astype(jax.numpy.bfloat16) for side in (image, text)]
        found = [objective(name, **where)(*half, SCALE, BIAS, mask) for where in ({}, {"block": 2})]
        assert all(value.dtype == np.float32 for value in found)
        np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("where", [{}, {"block": 4}, {"block": 1}])
def test_accuracies_are_of_the_real_pairs(where):
    image, text, mask = make_pairs(40, padding=7)
    scores = image[mask > 0] @ text[mask > 0].T
    expected = [np.mean(scores.argmax(axis=axis) == np.arange(33)) for axis in (1, 0)]
    found = (chunked if where else contrastive).accuracies(image, text, mask, **where)
    np.testing.assert_allclose([found["image_to_text_accuracy"], found["text_to_image_accuracy"]], expected, atol=1e-6)
    assert 0.1 < expected[0] < 0.9 and expected[0] != expected[1]


@pytest.mark.parametrize("where", [{}, {"block": 3}])
def test_collapsed_embeddings_retrieve_nothing(where):
    ones = np.full((6, 4), 0.5, np.float32)
    found = (chunked if where else contrastive).accuracies(ones, ones, np.ones(6), **where)
    assert not any(found.values())


def test_what_does_not_fit_is_an_error():
    image, text, mask = make_pairs(6)
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    with pytest.raises(ConfigError, match="block: 0"):
        chunked.softmax(image, text, SCALE, mask, block=0)
    with pytest.raises(ConfigError, match="need a mesh"):
        chunked.sigmoid(image, text, SCALE, BIAS, mask, axes=("data",))
    with pytest.raises(ConfigError, match=r"no axis 'dat'.*data"):
        chunked.accuracies(image, text, mask, mesh=mesh, axes=("dat",))

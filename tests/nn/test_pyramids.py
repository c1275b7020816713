"""The feature pyramid network against PyTorch operations."""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitvlm.nn.pyramids import FeaturePyramid, upsample

WIDTHS = (5, 8, 3)


def random_pyramid(*sizes):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(2, *size, width)).astype(np.float32) for size, width in zip(sizes, WIDTHS))


def pytorchs(pyramid, params, extra_levels):
    """Section 3 of Lin et al. 2017, on [B, C, h, w]."""

    def conv(name, x):
        kernel, bias = (torch.from_numpy(np.asarray(params[name][part])) for part in ("kernel", "bias"))
        return F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=kernel.shape[0] // 2)

    laterals = [
        conv(f"lateral_{s}", torch.from_numpy(level.transpose(0, 3, 1, 2).copy())) for s, level in enumerate(pyramid)
    ]
    merged = [laterals[-1]]
    for lateral in laterals[-2::-1]:
        merged.insert(0, lateral + F.interpolate(merged[0], size=lateral.shape[2:], mode="nearest"))
    levels = [conv(f"output_{s}", level) for s, level in enumerate(merged)]
    for _ in range(extra_levels):
        levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
    return [level.permute(0, 2, 3, 1).numpy() for level in levels]


@pytest.mark.parametrize(
    ("sizes", "extra_levels"),
    [(((8, 12), (4, 6), (2, 3)), 1), (((13, 9), (7, 5), (4, 3)), 2), (((7, 5),), 0)],
    ids=["doubled", "odd", "one_level"],
)
def test_levels_equal_pytorchs(sizes, extra_levels):
    pyramid = random_pyramid(*sizes)
    network = FeaturePyramid(width=6, extra_levels=extra_levels)
    shapes = jax.eval_shape(network.init, jax.random.key(0), pyramid)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    found = jax.jit(network.apply)({"params": params}, pyramid)
    expected = pytorchs(pyramid, params, extra_levels)
    assert len(found) == len(expected) == len(sizes) + extra_levels
    for level, wanted in zip(found, expected):
        np.testing.assert_allclose(level, wanted, atol=1e-3)


@pytest.mark.parametrize(("size", "larger"), [((3, 5), (6, 10)), ((4, 3), (7, 5)), ((2, 7), (9, 7)), ((5, 1), (3, 4))])
def test_upsampling_equals_pytorchs_nearest(size, larger):
    x = np.random.default_rng(0).normal(size=(1, *size, 2)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), size=larger, mode="nearest")
    np.testing.assert_array_equal(upsample(x, larger), expected.numpy().transpose(0, 2, 3, 1))

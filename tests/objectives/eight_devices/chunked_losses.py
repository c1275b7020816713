"""Losses over a ring of devices equal the dense ones in a fraction of their memory (see training/test_devices.py)."""

import functools
import pathlib
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from pairs import BIAS, SCALE, assert_equal, make_pairs, objective, value_and_gradients

from vitvlm.core.config import ConfigError
from vitvlm.objectives import chunked, contrastive

assert jax.device_count() == 8

NAMES = ["softmax", "smoothed", "sigmoid"]
AXES = ("data", "fsdp")
FULL = {"data": 2, "fsdp": 2, "tensor": 2}
MESHES = [{"data": 1, "fsdp": 1}, {"data": 2, "fsdp": 1}, {"data": 2, "fsdp": 2}, {"data": 2, "fsdp": 4}, FULL]


def make_mesh(sizes):
    count = int(np.prod(list(sizes.values())))
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), kinds, devices=jax.devices()[:count])


CASES = [(sizes, 3, 0.4, 2) for sizes in MESHES] + [(MESHES[-2], 1, 0, None), (FULL, 5, 0.7, None)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("sizes", "per_device", "padded", "block"), CASES, ids=str)
def test_values_and_gradients_equal_dense(name, sizes, per_device, padded, block):
    size = per_device * sizes["data"] * sizes["fsdp"]
    image, text, mask = make_pairs(size, padding=int(padded * size))
    arguments = (image, text, SCALE, BIAS, mask)
    found = value_and_gradients(name, mesh=make_mesh(sizes), axes=AXES, block=block)(*arguments)
    assert_equal(found, value_and_gradients(name)(*arguments))


@pytest.mark.parametrize("name", NAMES)
def test_a_device_with_padding_only(name):
    image, text, mask = make_pairs(16)
    mask[4:6] = 0
    arguments = (image, text, SCALE, BIAS, mask)
    found = value_and_gradients(name, mesh=make_mesh({"data": 8}), axes=("data",), block=1)(*arguments)
    assert_equal(found, value_and_gradients(name)(*arguments))


@pytest.mark.parametrize("sizes", [MESHES[-2], FULL], ids=str)
def test_accuracies_equal_dense(sizes):
    image, text, mask = make_pairs(40, padding=7)
    split = functools.partial(chunked.accuracies, mesh=make_mesh(sizes), axes=AXES, block=3)
    found = jax.jit(split)(image, text, mask)
    jax.tree.map(np.testing.assert_allclose, found, contrastive.accuracies(image, text, mask))


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_a_fraction_of_the_dense_loss(name):
    """Of what the gradient needs on each of 8 devices besides inputs and outputs; B = 4096, D = 64."""
    mesh = make_mesh({"data": 8})
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    side = jax.ShapeDtypeStruct((4096, 64), np.float32)
    scalar, mask = jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((4096,), np.float32)

    def compiled(**where):
        gradient = jax.grad(objective(name, **where), argnums=(0, 1, 2, 3))
        lowered = jax.jit(
            gradient, in_shardings=(split, split, whole, whole, split), out_shardings=(split, split, whole, whole)
        ).lower(side, side, scalar, scalar, mask)
        return lowered.compile()

    programs = [compiled(), *(compiled(mesh=mesh, axes=("data",), block=block) for block in (None, 64))]
    dense, ring, blocks = (program.memory_analysis().temp_size_in_bytes / 2**20 for program in programs)
    print(f"{name}: dense {dense:.2f} MiB, ring {ring:.2f} MiB, ring in blocks of 64 {blocks:.2f} MiB")
    assert dense > 512 * 4096 * 4 / 2**20  # at least its logits
    assert blocks < dense / 8
    assert ring < dense / 4
    # No array of the rings' programs is as long as the batch, and texts are never gathered.
    assert ["4096" in program.as_text() for program in programs] == [True, False, False]
    assert ["all-gather(" in program.as_text() for program in programs] == [True, False, False]


def test_a_batch_that_does_not_divide_is_an_error():
    image, text, mask = make_pairs(12)
    with pytest.raises(ConfigError, match="a batch of 12 does not divide over the 8 devices"):
        chunked.sigmoid(image, text, SCALE, BIAS, mask, mesh=make_mesh({"data": 8}), axes=("data",))

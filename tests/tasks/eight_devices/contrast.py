"""The contrastive task on eight devices: value and gradients of one device (see training/test_devices.py)."""

import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from test_contrast import RNG, a_batch, a_model

from vitvlm.tasks import Contrast
from vitvlm.training import sharding

assert jax.device_count() == 8

MESHES = [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.mark.parametrize("loss_kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("block", [None, 1])
def test_equals_one_device(loss_kind, sizes, block):
    model = a_model(bias_init=-10.0) if loss_kind == "sigmoid" else a_model()
    batch = jax.device_get(a_batch(16))
    variables = Contrast(model, loss_kind).init(RNG, batch)
    mesh = sharding.make_mesh(sizes)
    axes = tuple(axis for axis in sharding.BATCH_AXES if axis in mesh.shape)

    def run(task, batch):
        def loss(params):
            value, metrics, _ = task.loss({"params": params}, batch, RNG, True)
            return value, metrics

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    expected = jax.jit(lambda batch: run(Contrast(model, loss_kind), batch))(batch)
    task = Contrast(model, loss_kind, block_size=block, mesh=mesh, axes=axes)
    placed = sharding.put_batch(batch, mesh)
    found = jax.jit(sharding.keep_examples_split(lambda _, batch: run(task, batch), mesh))(variables, placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)

"""CoCa's loss on eight devices, whole and in micro-batches: value and gradients of one device."""

import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from test_coca import RNG, a_coca, captioned, drawn

from vitvlm.tasks import CoCa
from vitvlm.training import sharding
from vitvlm.training.grad_cache import cached_gradients
from vitvlm.training.gradients import make_gradients

assert jax.device_count() == 8


@pytest.fixture(scope="module")
def expected():
    task = CoCa(a_coca())
    params = drawn(task)["params"]
    return params, jax.jit(make_gradients(task.loss))(params, {}, captioned(16), RNG)


@pytest.mark.parametrize(("sizes", "accumulate"), [({"data": 8}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 2)], ids=str)
def test_equals_one_device(sizes, accumulate, expected):
    params, wanted = expected
    mesh = sharding.make_mesh(sizes)
    task = CoCa(a_coca(), block_size=1, mesh=mesh, axes=tuple(a for a in sharding.BATCH_AXES if a in mesh.shape))
    batch = sharding.put_batch(jax.device_get(captioned(16)), mesh)
    if accumulate > 1:
        encode = sharding.keep_examples_split(task.pairwise.encode, mesh)
        gradients = cached_gradients(encode, task.pairwise.compare, accumulate=accumulate)
    else:
        gradients = make_gradients(sharding.keep_examples_split(task.loss, mesh))
    found = jax.jit(gradients)(params, {}, batch, RNG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)

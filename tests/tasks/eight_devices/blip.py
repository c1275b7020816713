"""BLIP's task on eight devices: losses, gradients, momentum encoders and queue of one device."""

import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from test_blip_task import RATES, RNG, a_batch, a_blip, drawn

from vitvlm.tasks import Blip
from vitvlm.training import sharding
from vitvlm.training.gradients import make_gradients

assert jax.device_count() == 8


@pytest.fixture(scope="module")
def expected():
    task = Blip(a_blip(), **RATES | {"queue_size": 24})
    variables = drawn(task)
    batch = a_batch(0, 16, padding=(3, 15))
    given = (variables["params"], {"contrast": variables["contrast"]})
    return task, given, batch, jax.jit(make_gradients(task.loss))(*given, batch, RNG)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_equals_one_device(sizes, expected):
    task, given, batch, wanted = expected
    mesh = sharding.make_mesh(sizes)
    placed = sharding.put_batch(jax.device_get(batch), mesh)
    gradients = make_gradients(sharding.keep_examples_split(task.loss, mesh))
    found = jax.jit(gradients)(*given, placed, RNG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)

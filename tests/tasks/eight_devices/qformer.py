"""BLIP-2's first stage on eight devices: negatives of all of them; loss, metrics and gradients of one device."""

import pathlib
import sys

import jax
import numpy as np

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from stage_one import RNG, a_batch, a_task, drawn

from vitvlm.training import sharding
from vitvlm.training.gradients import make_gradients

assert jax.device_count() == 8


def test_equals_one_device():
    params = drawn(a_task())["params"]
    wanted = jax.jit(make_gradients(a_task().loss))(params, {}, a_batch(16), RNG)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    batch = sharding.put_batch(jax.device_get(a_batch(16)), mesh)
    gradients = make_gradients(sharding.keep_examples_split(a_task().loss, mesh))
    found = jax.jit(gradients)(params, {}, batch, RNG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)

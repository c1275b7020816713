"""A job with quantized frozen parameters under FSDP on eight devices makes the step of one device."""

import jax
import numpy as np
import pytest

from tests.jobs import golden
from vitvlm.core.paths import flatten
from vitvlm.jobs.training import train
from vitvlm.jobs.training.setup import setup
from vitvlm.training import sharding, storage


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_step_under_fsdp_is_that_of_one_device(kind):
    config = golden.load("configs/vit.py", "debug")
    config.model.update(width=128, mlp_width=128, heads=2, depth=2, scan=True, drop_path=0.0)
    config.frozen_dtype = ((".*kernel", kind), (".*", "bfloat16"))
    config.optimizer.freeze = (("blocks/(attention|mlp)/.*", True), (".*", False))
    config.sharding = "fsdp"
    stepped = {}
    for count in (1, 8):
        mesh = sharding.make_mesh({"data": 1, "fsdp": count, "tensor": 1}, devices=jax.devices()[:count])
        job = setup(config, mesh=mesh)
        with job.data.batches() as batches:
            batch = sharding.put_batch(next(batches), mesh)
        state = train.first_state(job.training)
        before = jax.tree.map(np.asarray, state.frozen)
        stepped[count] = state, metrics = train.compiled_step(job.training)(state, batch)
        jax.tree.map(np.testing.assert_array_equal, state.frozen, before)
        up = state.frozen["blocks"]["mlp"]["up"]["kernel"]
        assert isinstance(up, storage.Quantized)
        rows = len(up.values.addressable_shards[0].data.ravel())
        assert rows * count == up.values.size, "each device has its part"
    (one, wanted), (eight, found) = stepped[1], stepped[8]
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, one.frozen, eight.frozen)
    for path, leaf in flatten(one.params).items():
        np.testing.assert_allclose(flatten(eight.params)[path], leaf, rtol=1e-4, atol=2e-5, err_msg=path)

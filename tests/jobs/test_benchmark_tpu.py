"""Steps as a TPU's compiler sees them: both sides do the same work, and the cycles are the entry's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm.core import flops
from vitvlm.core.config import ConfigError
from vitvlm.jobs.benchmarks import plain_models, tpu
from vitvlm.jobs.benchmarks.tpu import Compiled, Measured

PROGRAM = """
%fused (p: f32[2]) -> f32[2] {
  ROOT %a = f32[2] add(p, p), backend_config={"estimated_cycles":"100"}
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %b = f32[2] fusion(x), backend_config={"flag":1,"estimated_cycles":"7"}
  ROOT %c = f32[2] copy(%b), backend_config={"estimated_cycles":"35"}
}

%behind (p: f32[2]) -> f32[2] {
  ROOT %d = f32[2] add(p, p), backend_config={"estimated_cycles":"1000"}
}
"""


def test_cycles_are_those_of_the_entry():
    assert tpu.estimated_cycles(PROGRAM) == 42
    with pytest.raises(ValueError, match="only the TPU compiler notes them"):
        tpu.estimated_cycles("ENTRY %main {\n}")


@pytest.mark.parametrize("family", tpu.FAMILIES)
def test_the_plain_model_does_the_work_of_ours(family):
    """FLOPs of the losses and their gradients; each side's own way of its little products is within 2 %."""
    batch = dict(tpu.abstract_batch(family, 4, 224))

    def work(init, loss):
        params = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), batch)["params"]
        size = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        return flops.count(jax.grad(lambda params, batch: loss({"params": params}, batch)), params, batch), size

    (ours, our_size), (plain, plain_size) = (
        work(*side) for side in (tpu.ours(family, "B", 16, 224), tpu.plain(family, "B", 16))
    )
    assert ours == pytest.approx(plain, rel=0.02)
    assert our_size == pytest.approx(plain_size, rel=0.002)


def test_a_plain_model_learns():
    sizes = {"width": 8, "depth": 1, "heads": 2, "mlp_width": 16}
    batch = {"image": jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), "label": jnp.array([0, 1])}
    model = plain_models.ViT(sizes, 4, 3)
    variables = model.init(jax.random.key(1), batch)
    loss, gradients = jax.jit(jax.value_and_grad(model.apply))(variables, batch)
    assert np.isfinite(loss) and all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["params"]["head"]))


def test_an_unknown_model():
    with pytest.raises(ConfigError, match="--models: 'vit_q16' is not family_sizepatch"):
        tpu.parse("vit_q16")


def test_the_table_has_both_sides():
    one = Measured("ViT-B/16", 64, Compiled(111_000_000, 4_880_000_000, 1), Compiled(118_000_000, 5_000_000_000, 2))
    text = tpu.markdown([one], {"device": "a TPU"})
    assert "| ViT-B/16 | 64 | 111.0 | 118.0 | 0.94 | 4.88 | 5.00 |" in text and "device a TPU" in text

"""Steps as a TPU's compiler sees them: both sides do the same work, and the cycles are the entry's."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm.core import flops
from vitvlm.core.config import ConfigError
from vitvlm.jobs.benchmarks import plain_models, tpu, tpu_sharded
from vitvlm.jobs.benchmarks.tpu import Compiled, Measured
from vitvlm.jobs.benchmarks.tpu_sharded import Travel

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
    size = "S" if family == "smollm2" else "B"

    def work(init, loss):
        params = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), batch)["params"]
        size = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        return flops.count(jax.grad(lambda params, batch: loss({"params": params}, batch)), params, batch), size

    (ours, our_size), (plain, plain_size) = (
        work(*side) for side in (tpu.ours(family, size, 16, 224), tpu.plain(family, size, 16))
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


def test_a_table_is_made_piece_by_piece(monkeypatch, tmp_path):
    """Models that were measured alike stay; what was measured on another device does not."""
    chip = types.SimpleNamespace(device_kind="TPU v5 lite")
    cycles = iter(range(1, 100))
    monkeypatch.setattr(tpu, "devices", lambda topology: [chip])
    monkeypatch.setattr(tpu, "measure", lambda *_: Compiled(next(cycles), 2, 3))
    monkeypatch.setattr(tpu.metadata, "version", lambda package: "1.0")
    how = {"batch_size": 8, "image_size": 32, "topology": "v5e:2x2", "workdir": str(tmp_path)}
    tpu.run(["vit_s16"], **how)
    measured = tpu.run(["mae_s16", "vit_s16"], **how)
    assert [(one.name, one.ours.cycles, one.plain.cycles) for one in measured] == [
        ("ViT-S/16", 5, 6),
        ("MAE-S/16", 3, 4),
    ]
    written = json.loads((tmp_path / tpu.FILE).read_text())
    assert [case["ours"]["cycles"] for case in written["cases"]] == [5, 3]
    assert (tmp_path / "benchmark_tpu.md").read_text().count("| 8 |") == 2
    chip.device_kind = "TPU v6 lite"
    assert [one.name for one in tpu.run(["siglip_b16"], **how)] == ["SigLIP-B/16"]


SHARED = """
%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %all-gather.1 = bf16[16,8]{1,0} all-gather(bf16[4,8]{1,0} %x), dimensions={0}
  %all-gather-start = (bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[16,8]{1,0}) all-gather-start(bf16[4,8]{1,0} %y)
  %all-gather-done = bf16[16,8]{1,0} all-gather-done(%all-gather-start)
}
ENTRY %main {
  %all-reduce.3 = (f32[2]{0}, f32[10]{0}) all-reduce(%a, %b), to_apply=%add
  %permute = f32[] collective-permute(%c)
}
"""


def test_what_travels_is_counted():
    found = tpu_sharded.travel(SHARED)
    assert found == {
        "all-gather": Travel(2, 512, 256),
        "all-reduce": Travel(1, 40, 40),
        "collective-permute": Travel(1, 4, 4),
    }

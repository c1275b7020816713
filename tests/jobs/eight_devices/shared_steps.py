"""The benchmark of a step under FSDP, here for eight CPUs."""

import jax

from vitvlm.jobs.benchmarks import tpu, tpu_sharded


def test_a_step_under_fsdp_as_compiled(monkeypatch):
    """The state lies in even shares, weights are gathered, and no whole batch of activations travels."""
    monkeypatch.setitem(tpu.SIZES, "Tiny", {"width": 64, "depth": 2, "heads": 4, "mlp_width": 256})
    batch_size, tokens = 16, 17
    found = tpu_sharded.measure("vit", "Tiny", 8, batch_size, 32, jax.devices())
    assert found.chips == 8 and found.name == "ViT-Tiny/8"
    assert found.whole_bytes / 8 < found.state_bytes < 1.3 * found.whole_bytes / 8 + batch_size * 32 * 32 * 3 * 4 / 8
    assert found.travel["all-gather"].largest >= 64 * 256 * 2
    activations = batch_size // 8 * tokens * 64 * 2
    assert all(found.travel[kind].largest < activations for kind in found.travel if kind in ("all-to-all",))
    (row,) = tpu_sharded.rows([found])
    assert row[:3] == ("ViT-Tiny/8", "16", "8") and len(row) == len(tpu_sharded.COLUMNS)

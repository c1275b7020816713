import itertools
import time

import numpy as np
import pytest

from vitvlm.nn.positions import sincos_grid
from vitvlm.pretrained.tables import Table, TableError, Transform, row, under
from vitvlm.pretrained.transforms import (
    batch_norm,
    conv,
    fixed_positions,
    gate_and_up,
    gate_and_up_bias,
    linear,
    positions,
    qkv,
    qkv_bias,
    same,
    unused,
)


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_there_and_back():
    rows = [row(f"encoder.{i}.weight", f"blocks_{i}/kernel", linear) for i in range(2)]
    table = Table([*rows, *under("decoder.", "deep/", [row("x", "y", same)]), *batch_norm("bn", "norm")])
    tensors = {f"encoder.{i}.weight": random(4, 5) for i in range(2)} | {"decoder.x": random(3)}
    tensors |= {f"bn.{name}": random(3) for name in ("weight", "bias", "running_mean", "running_var")}
    tensors |= {"bn.num_batches_tracked": np.zeros((), np.int64)}
    variables = table.read(tensors)
    assert set(variables["params"]) == {"blocks_0", "blocks_1", "deep", "norm"}
    np.testing.assert_array_equal(variables["params"]["blocks_1"]["kernel"], tensors["encoder.1.weight"].T)
    np.testing.assert_array_equal(variables["params"]["deep"]["y"], tensors["decoder.x"])
    np.testing.assert_array_equal(variables["batch_stats"]["norm"]["var"], tensors["bn.running_var"])
    written = table.write(variables)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)
        assert written[name].dtype == tensor.dtype


def test_one_tensor_for_several_parameters():
    split = Transform(read=lambda fused: tuple(np.split(fused, 3)), write=lambda *parts: (np.concatenate(parts),))
    table = Table([row("qkv", ("query", "key", "value"), split)])
    variables = table.read({"qkv": np.arange(6)})
    np.testing.assert_array_equal(variables["params"]["key"], [2, 3])
    np.testing.assert_array_equal(table.write(variables)["qkv"], np.arange(6))


@pytest.mark.parametrize(
    "transform, shape",
    [
        (linear, (3, 4)),
        (conv, (4, 2, 3, 5)),
        (positions((2, 2), ("cls",)), (1, 5, 8)),
        (positions((2, 3), ("cls", "distillation")), (1, 8, 4)),
        (positions((2, 3)), (1, 6, 8)),
        (gate_and_up, (6, 4)),
        (gate_and_up_bias, (6,)),
        (qkv, (12, 4)),
        (qkv_bias, (12,)),
    ],
    ids=[
        "linear",
        "conv",
        "positions",
        "with_distillation",
        "without_cls",
        "gate_and_up",
        "gate_and_up_bias",
        "qkv",
        "qkv_bias",
    ],
)
def test_transforms_invert(transform, shape):
    tensor = random(*shape)
    (back,) = transform.write(*transform.read(tensor))
    np.testing.assert_array_equal(back, tensor)


def test_fixed_positions_are_written_and_checked():
    table = Table([row("positions", (), fixed_positions((2, 2), 8))])
    written = table.write({})
    np.testing.assert_array_equal(written["positions"][0, 1:].reshape(2, 2, 8), sincos_grid((2, 2), 8))
    assert table.read(written) == {}
    with pytest.raises(TableError, match="not the fixed sin-cos table"):
        table.read({"positions": written["positions"] + 0.01})


def test_a_tensor_without_use_is_read_into_nothing_and_written_as_zeros():
    table = Table([row("mask_token", (), unused((1, 3)))])
    assert table.read({"mask_token": random(1, 3)}) == {}
    np.testing.assert_array_equal(table.write({})["mask_token"], np.zeros((1, 3)))


def test_what_is_missing_or_left_over_is_named():
    rows = [row(f"a.{i}", f"blocks_{i}/a", same) for i in range(2)]
    full = {"a.0": random(1), "a.1": random(1)}
    with pytest.raises(TableError, match=r"^the checkpoint has no tensor a\.0, a\.1; .* no row reads: b\.0, c$"):
        Table.reading(rows, {"b.0", "c"})
    with pytest.raises(TableError, match=r"^the checkpoint has tensors that no row reads: b\.0$"):
        Table.reading(rows, full | {"b.0": random(1)})
    table = Table.reading(rows, full)
    with pytest.raises(TableError, match=r"no parameter params/blocks_0/a, params/blocks_1/a$"):
        table.write({})
    with pytest.raises(TableError, match=r"the model has parameters that no row writes: params/head$"):
        table.write({"params": table.read(full)["params"] | {"head": random(1)}})


def test_long_lists_are_cut_and_a_common_prefix_is_named():
    rows = [row(f"blocks.{i}.weight", f"blocks_{i}/a", same) for i in range(20)]
    with pytest.raises(TableError) as found:
        Table.reading(rows, {f"module.vit.{each.theirs[0]}" for each in rows})
    assert "blocks.0.weight, blocks.1.weight, " in str(found.value) and "(20 in all)" in str(found.value)
    assert 'most of these begin with "module.vit." in the checkpoint' in str(found.value)
    assert len(str(found.value)) < 700
    with pytest.raises(TableError, match=r'most of these lack the prefix "vit\." in the checkpoint'):
        Table.reading(under("vit.", "", rows), {each.theirs[0] for each in rows})
    with pytest.raises(TableError) as found:
        Table.reading(rows, {"a.b", "c.d"})
    assert "most of these" not in str(found.value)


@pytest.mark.parametrize("name", ["num_batches_tracked", "position_ids", "relative_position_index", "attn_mask"])
def test_tensors_without_meaning_may_be_there_or_not(name):
    rows = [row("w", "w", same), *batch_norm("bn", "norm")]
    full = Table(rows).write({"params": {"w": random(1), "norm": {"scale": random(1), "bias": random(1)}},
                              "batch_stats": {"norm": {"mean": random(1), "var": random(1)}}})  # fmt: skip
    assert "bn.num_batches_tracked" in full
    bare = {key: value for key, value in full.items() if "tracked" not in key}
    for tensors in (full, bare, bare | {f"deep.inside.{name}": random(2), name: random(1)}):
        assert set(Table.reading(rows, tensors).read(tensors)) == {"params", "batch_stats"}
    with pytest.raises(TableError, match=r"no row reads: deep\.ids$"):
        Table.reading(rows, full | {"deep.ids": random(1)})


def test_endless_rows_are_not_followed():
    endless = (row(f"a.{i}", f"a_{i}", same) for i in itertools.count())
    with pytest.raises(TableError, match="more than 102 tensors"):
        Table.reading(endless, {"a.0"})


def test_positions_of_another_grid():
    with pytest.raises(TableError, match=r"shape \(1, 7, 8\) do not fit a cls token, a grid of 2x2"):
        positions((2, 2), ("cls",)).read(random(1, 7, 8))
    with pytest.raises(TableError, match="do not fit a cls token, a distillation token, a grid of 2x2"):
        positions((2, 2), ("cls", "distillation")).read(random(1, 5, 8))


def test_tensors_are_read_one_at_a_time():
    """An archive has one file handle; only what follows reading is done by threads."""
    reading = []

    class Archive(dict):
        def __getitem__(self, name):
            reading.append(name)
            assert len(reading) == 1, "two threads read at once"
            time.sleep(0.002)
            reading.remove(name)
            return np.full(3, float(name))

    table = Table(row(str(i), f"a_{i}", same) for i in range(40))
    found = table.read(Archive.fromkeys(map(str, range(40))))["params"]
    assert all((found[f"a_{i}"] == i).all() for i in range(40))

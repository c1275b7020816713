import numpy as np
import pytest

from vitvlm.nn.positions import sincos_grid
from vitvlm.pretrained.tables import (
    Table,
    TableError,
    Transform,
    cls_and_grid,
    conv_to_patch,
    fixed_positions,
    linear,
    row,
    same,
)

FACTS = {"i": 2, "j": 3, "patch": (2, 3), "grid": (2, 2), "width": 8}


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_layers_of_two_stacks_there_and_back():
    table = Table(row("encoder.{i}.weight", "blocks_{i}/kernel", linear)) + Table(
        row("decoder.{j}", "deep_{j}/x", same)
    )
    tensors = {f"encoder.{i}.weight": random(4, 5) for i in range(2)} | {f"decoder.{j}": random(j) for j in range(3)}
    params = table.read(tensors, FACTS)
    assert set(params) == {"blocks_0", "blocks_1", "deep_0", "deep_1", "deep_2"}
    np.testing.assert_array_equal(params["blocks_1"]["kernel"], tensors["encoder.1.weight"].T)
    written = table.write(params, FACTS)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)


def test_one_tensor_for_several_parameters():
    split = Transform(
        read=lambda facts, fused: tuple(np.split(fused, 3)), write=lambda facts, *parts: (np.concatenate(parts),)
    )
    table = Table(row("qkv", ("query", "key", "value"), split))
    params = table.read({"qkv": np.arange(6)}, FACTS)
    np.testing.assert_array_equal(params["key"], [2, 3])
    np.testing.assert_array_equal(table.write(params, FACTS)["qkv"], np.arange(6))


@pytest.mark.parametrize(
    "transform, shape",
    [(linear, (3, 4)), (conv_to_patch, (5, 1, 2, 3)), (cls_and_grid, (1, 5, 8))],
    ids=["linear", "conv_to_patch", "cls_and_grid"],
)
def test_transforms_invert(transform, shape):
    tensor = random(*shape)
    (back,) = transform.write(FACTS, *transform.read(FACTS, tensor))
    np.testing.assert_array_equal(back, tensor)


def test_fixed_positions_are_written_and_checked():
    table = Table(row("positions", (), fixed_positions("width")))
    written = table.write({}, FACTS)
    np.testing.assert_array_equal(written["positions"][0, 1:].reshape(2, 2, 8), sincos_grid((2, 2), 8))
    assert table.read(written, FACTS) == {}
    with pytest.raises(TableError, match="not the fixed sin-cos table"):
        table.read({"positions": written["positions"] + 0.01}, FACTS)


def test_what_is_missing_or_left_over_is_named():
    table = Table(row("a.{i}", "blocks_{i}/a", same))
    full = {"a.0": random(1), "a.1": random(1)}
    with pytest.raises(TableError, match=r"^the checkpoint has no tensor a\.0, a\.1; .* no row reads: b\.0, c$"):
        table.read({"b.0": random(1), "c": random(1)}, FACTS)
    with pytest.raises(TableError, match=r"^the checkpoint has tensors that no row reads: b\.0$"):
        table.read(full | {"b.0": random(1)}, FACTS)
    with pytest.raises(TableError, match=r"the model has no parameter blocks_0/a, blocks_1/a$"):
        table.write({}, FACTS)
    with pytest.raises(TableError, match=r"the model has parameters that no row writes: head$"):
        table.write(table.read(full, FACTS) | {"head": random(1)}, FACTS)


def test_positions_of_another_grid():
    with pytest.raises(TableError, match=r"shape \(1, 7, 8\) do not fit a CLS token and a grid of 2x2"):
        cls_and_grid.read(FACTS, random(1, 7, 8))

import math

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from vitvlm.nn.positions import PositionTable, resample_grid, sincos_grid


@settings(max_examples=30, deadline=None)
@given(h=st.integers(1, 9), w=st.integers(1, 9), quarter=st.integers(1, 6))
def test_sincos_is_the_formula_of_the_paper(h, w, quarter):
    table = sincos_grid((h, w), 4 * quarter)
    assert table.shape == (h, w, 4 * quarter)
    assert table.dtype == np.float32
    for row, column, i in np.ndindex(h, w, quarter):
        frequency = 10_000 ** (-4 * i / (4 * quarter))
        expected = [
            math.sin(column * frequency),
            math.cos(column * frequency),
            math.sin(row * frequency),
            math.cos(row * frequency),
        ]
        np.testing.assert_allclose(table[row, column, i::quarter], expected, atol=1e-6)


def test_sincos_equals_transformers_on_a_non_square_grid():
    theirs = build_2d_sinusoidal_position_embedding(3, 5, 32).numpy().reshape(3, 5, 32)
    rows_then_columns = np.concatenate([theirs[..., 16:], theirs[..., :16]], axis=-1)
    np.testing.assert_allclose(sincos_grid((3, 5), 32), rows_then_columns, atol=1e-6)


def test_sincos_needs_a_width_divisible_by_4():
    with pytest.raises(ValueError, match="divisible by 4, got 30"):
        sincos_grid((2, 2), 30)


@pytest.mark.parametrize("antialias", [False, True], ids=["plain", "antialias"])
@pytest.mark.parametrize(
    "old, new",
    [
        ((14, 14), (24, 24)),
        ((14, 14), (7, 9)),
        ((3, 5), (10, 2)),
        ((2, 2), (3, 3)),
        ((1, 1), (4, 3)),
        ((16, 9), (15, 9)),
    ],
    ids=str,
)
def test_resampling_equals_torch(old, new, antialias):
    table = np.random.default_rng(0).normal(size=(*old, 6)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(table.transpose(2, 0, 1)[None]),
        size=new,
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    ours = resample_grid(table, new, antialias=antialias)
    np.testing.assert_allclose(ours, theirs[0].numpy().transpose(1, 2, 0), atol=1e-5)


def test_resampling_to_the_same_grid_changes_nothing_and_keeps_the_dtype():
    table = jax.numpy.ones((3, 4, 2), jax.numpy.bfloat16)
    assert resample_grid(table, (3, 4)) is table
    assert resample_grid(table, (6, 2)).dtype == jax.numpy.bfloat16


def test_tables_of_a_learned_and_a_fixed_kind():
    learned = PositionTable("learned", (2, 3), 8, prefix=("cls", "distillation"))
    params = learned.init(jax.random.key(0), (2, 3))["params"]
    table, before = learned.apply({"params": params}, (2, 3))
    np.testing.assert_array_equal(table, params["grid"].reshape(6, 8))
    np.testing.assert_array_equal(before, [params["cls"], params["distillation"]])
    resampled, _ = learned.apply({"params": params}, (4, 6))
    np.testing.assert_array_equal(resampled, resample_grid(params["grid"], (4, 6)).reshape(24, 8))
    smooth, none = PositionTable("learned", (2, 3), 8, antialias=True).apply({"params": params}, (1, 2))
    np.testing.assert_array_equal(smooth, resample_grid(params["grid"], (1, 2), antialias=True).reshape(2, 8))
    assert none.shape == (0, 8)

    fixed = PositionTable("sincos", (2, 3), 8, prefix=("cls",))
    assert fixed.init(jax.random.key(0), (2, 3)) == {}
    table, before = fixed.apply({}, (2, 3))
    np.testing.assert_array_equal(table, sincos_grid((2, 3), 8).reshape(6, 8))
    np.testing.assert_array_equal(before, np.zeros((1, 8)))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vitvlm.nn.attention import Attention
from vitvlm.nn.calls import Call
from vitvlm.nn.relative import RelativeTable, relative_position_index, resample_relative_positions
from vitvlm.nn.windows import Windows, join, partition, shift_mask


def window_attention(heads, grid, window, shifted=False):
    """Swin's."""
    windows = Windows.shifted(grid, window, shifted)
    return Attention(heads, windows=windows, positional=(RelativeTable(heads, window, windows.side),))


def test_windows_are_cut_row_by_row_and_joined_again():
    maps = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    windows = partition(maps, 2)
    assert windows.shape == (2 * 2 * 3, 4, 3)
    np.testing.assert_array_equal(windows[2].reshape(2, 2, 3), maps[0, :2, 4:])
    np.testing.assert_array_equal(windows[6 + 3].reshape(2, 2, 3), maps[1, 2:, :2])
    np.testing.assert_array_equal(join(windows, (4, 6), 2), maps)


@pytest.mark.parametrize("grid, window, shift", [((6, 9), 3, 1), ((4, 4), 4, 2), ((8, 4), 4, 1)], ids=str)
def test_the_mask_lets_see_each_other_what_is_together_in_the_image(grid, window, shift):
    """Two tokens of a window of the rolled map, if they are as far apart in the image as they are in the window."""
    h, w = grid
    mask = np.asarray(shift_mask(grid, window, shift))
    places = [(row, column) for row in range(window) for column in range(window)]
    origins = [(row, column) for row in range(0, h, window) for column in range(0, w, window)]
    assert mask.shape == (len(origins), len(places), len(places))
    for i, q, k in np.ndindex(mask.shape):
        (top, left), query, key = origins[i], places[q], places[k]
        rows = [(top + place[0] + shift) % h for place in (query, key)]
        columns = [(left + place[1] + shift) % w for place in (query, key)]
        together = rows[0] - rows[1] == query[0] - key[0] and columns[0] - columns[1] == query[1] - key[1]
        assert mask[i, q, k] == together


@pytest.mark.parametrize("window, table_window", [(3, 3), (2, 4), (1, 3)], ids=str)
def test_the_index_finds_the_offset_of_query_and_key(window, table_window):
    reach = range(-(table_window - 1), table_window)
    offsets = [(row, column) for row in reach for column in reach]
    index = relative_position_index(window, table_window)
    for q, k in np.ndindex(index.shape):
        (query_row, query_column), (key_row, key_column) = divmod(q, window), divmod(k, window)
        assert offsets[index[q, k]] == (query_row - key_row, query_column - key_column)


def test_a_window_larger_than_the_grid_shrinks_to_it_and_uses_the_middle_of_the_table():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2 * 5, 8)), jnp.float32)
    large = window_attention(2, grid=(2, 5), window=4, shifted=True)
    small = window_attention(2, grid=(2, 5), window=2)
    shapes = jax.eval_shape(large.init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    table = params["relative_positions"]
    assert table.shape == (49, 2)
    middle = table.reshape(7, 7, 2)[2:5, 2:5].reshape(9, 2)
    call = Call(capture=("attention",))
    ours, weights, _ = jax.jit(lambda params: large.apply({"params": params}, x, call))(params)
    expected, _, _ = jax.jit(small.apply)({"params": params | {"relative_positions": middle}}, x)
    assert weights.shape == (2 * 3, 2, 4, 4)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_mask_is_refused():
    x = jnp.zeros((1, 4, 8))
    with pytest.raises(ValueError, match="takes no mask"):
        window_attention(2, grid=(2, 2), window=2).init(jax.random.key(0), x, Call(mask=jnp.ones((1, 1, 4, 4), bool)))


@pytest.mark.parametrize("old, new", [(7, 12), (7, 3), (2, 5)], ids=str)
def test_resampling_of_relative_positions_equals_torch(old, new):
    table = np.random.default_rng(0).normal(size=((2 * old - 1) ** 2, 4)).astype(np.float32)
    square = torch.from_numpy(table.T.reshape(1, 4, 2 * old - 1, 2 * old - 1))
    theirs = torch.nn.functional.interpolate(square, 2 * (2 * new - 1,), mode="bicubic", align_corners=False)
    np.testing.assert_allclose(resample_relative_positions(table, new), theirs[0].flatten(1).numpy().T, atol=1e-5)


def test_resampling_to_the_same_window_changes_nothing():
    table = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)
    np.testing.assert_array_equal(resample_relative_positions(table, 3), table)


@pytest.mark.parametrize("rows", [15, 16])
def test_a_table_of_no_window(rows):
    with pytest.raises(ValueError, match=f"a table of {rows} relative positions"):
        resample_relative_positions(np.zeros((rows, 2), np.float32), 3)

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest

from vitvlm.core import placing


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (1, 7), (3, 0), (300, 40), (3, 5, 2, 7), (600, 700)], ids=str)
def test_an_array_of_any_order_is_placed_as_it_is(shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    orders = list(itertools.permutations(range(len(shape))))
    for order in orders:
        found = placing.place(placing.lazy(array.transpose(order)))
        np.testing.assert_array_equal(found, array.transpose(order))
        halves = placing.place(array.transpose(order), dtype=ml_dtypes.bfloat16)
        np.testing.assert_array_equal(halves, array.transpose(order).astype(ml_dtypes.bfloat16))


def test_layers_are_stacked_and_taken_apart():
    array = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    stacked = placing.stacked(list(array))
    assert stacked.shape == (2, 3, 4) and len(stacked) == 2 and stacked.nbytes == array.nbytes
    np.testing.assert_array_equal(placing.place(stacked), array)
    np.testing.assert_array_equal(np.asarray(stacked[1]), array[1])
    np.testing.assert_array_equal([np.asarray(layer) for layer in placing.lazy(array)], array)
    with pytest.raises(ValueError, match="layers differ"):
        placing.stacked([array[0], array[1, :2]])


def test_what_is_placed_shares_no_memory_with_its_source():
    array = np.zeros((1000, 1100), np.float32)  # so large that its memory is mapped
    placed = placing.place(array)
    array[:] = 1
    assert not np.any(placed)
    doubled = jax.jit(lambda leaf: leaf + 2, donate_argnums=0)(placed)
    assert np.all(np.asarray(doubled) == 2)


def test_a_shape_that_was_not_announced_is_an_error():
    with pytest.raises(ValueError, match=r"weight: has shape \(2,\) where \(3,\) was announced"):
        placing.place(placing.Stored((3,), np.dtype(np.float32), lambda: np.zeros(2, np.float32), "weight"))

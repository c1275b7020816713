"""Operations and helpers for tests of batches."""

import numpy as np

AUGMENTED = "decode|random_resized_crop((6, 5))|flip|randaugment(2, 9)|normalize|random_erasing"
PLAIN = "decode|normalize"


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def damage(folder, names):
    for name in names:
        path = folder / name
        path.write_bytes(path.read_bytes()[:60])

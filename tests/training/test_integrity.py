"""Fingerprints: what they must not depend on, and what they must notice."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vitvlm.training import integrity

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int16", "int8", "uint8", "bool", "float8_e4m3fn"]


def mark(array) -> str:
    return integrity.fingerprints({"a": array})["a"]


def words_of(array: np.ndarray) -> np.ndarray:
    return np.ravel(array).view(f"uint{min(8 * array.dtype.itemsize, 32)}").astype(np.uint64)


def by_numpy(array: np.ndarray) -> str:
    """The docstring's formula, in 64-bit arithmetic."""
    low = np.uint64(0xFFFFFFFF)

    def mix(x):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & low
        return x ^ (x >> np.uint64(16))

    words, index = words_of(array), np.arange(words_of(array).size, dtype=np.uint64)
    linear = int((words * (2 * index + 1) & low).sum()) % 2**32
    mixed = int(mix((words + mix(index)) & low).sum()) % 2**32
    return f"{linear:08x}{mixed:08x}"


def sample(dtype: str, shape=(3, 5, 7)) -> np.ndarray:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    raw = np.random.default_rng(0).integers(0, 256, size=int(np.prod(shape)) * kind.itemsize, dtype=np.uint8)
    return (raw % 2 == 1 if kind.kind == "b" else raw.view(kind)).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_formula_and_every_flipped_bit(dtype):
    array = sample(dtype)
    good = mark(jnp.asarray(array))
    assert good == by_numpy(array)
    if dtype == "bool":
        flips = [(position, 0) for position in range(array.nbytes)]
    else:
        flips = [(position, bit) for position in range(0, array.nbytes, 11) for bit in range(8)]
    for position, bit in flips:
        damaged = array.copy()
        damaged.reshape(-1).view(np.uint8)[position] ^= 1 << bit
        found = mark(jnp.asarray(damaged))
        assert found[:8] != good[:8] and found[8:] != good[8:]


def test_notices_order_shape_of_zeros_and_sign_of_zero():
    array = jnp.arange(12.0).reshape(3, 4)
    others = [array.T.reshape(3, 4), array[::-1], array[:, ::-1], array.at[0, 0].set(-0.0), jnp.zeros((3, 4))]
    marks = {mark(array), *map(mark, others)}
    assert len(marks) == 1 + len(others)
    assert mark(jnp.zeros(3)) != mark(jnp.zeros(4))


def test_nan_payloads_count():
    bits = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert mark(jnp.asarray(bits[:1])) != mark(jnp.asarray(bits[1:]))


def test_keys_scalars_empty_and_complex_arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    assert mark(keys) == mark(jax.random.key_data(keys))
    assert mark(jnp.float32(3)) == by_numpy(np.float32([3]))
    assert mark(jnp.zeros((0, 4))) == "0" * 16
    complex_array = jnp.array([1 + 2j, 3 - 1j], jnp.complex64)
    assert mark(complex_array) == by_numpy(np.array([1, 2, 3, -1], np.float32))


def test_differing_names_both_sides():
    assert integrity.differing({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == ["b", "c"]


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from vitvlm.training import integrity
assert jax.device_count() == 8
array = np.sin(np.arange(512, dtype=np.float32)).reshape(8, 16, 4)
half = array.astype(jnp.bfloat16)
mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
marks = set()
for spec in (P(), P(None, ("data", "fsdp")), P("fsdp", "data")):
    place = lambda x: jax.device_put(x, NamedSharding(mesh, spec))
    tree = {"array": place(array), "half": place(half)}
    marks.add(tuple(sorted(integrity.fingerprints(tree).items())))
    sums = integrity._sums(tree)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(sums)), "every process must get the whole answer"
assert len(marks) == 1, marks
print(dict(marks.pop())["array"])
"""


def test_does_not_depend_on_the_sharding():
    run = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == by_numpy(np.sin(np.arange(512, dtype=np.float32)).reshape(8, 16, 4))

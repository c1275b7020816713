"""Arrays that are read where they are used, and their way onto devices: each device is given its own part only.

A `Lazy` array knows its shape and dtype; its numbers lie in a file. `place` reads it on the host, one array at a time,
and gives every device of a sharding the part that the device holds, in the device's own memory. Nothing passes through
another device, and of an array whose file can be mapped into memory, a process reads what its own devices hold.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from vitvlm.core import paths

Tree = Any
Index = tuple[slice, ...]
Target = tuple[np.ndarray, Index]  # memory on the host, and the part of an array that belongs there

ALIGNMENT = 64  # bytes; what lies so is taken over by a device that is the host itself, without a copy
TILE, LINE = 256, 64  # numbers and bytes: a part that is copied between arrays of different order
HUGE = 2**22  # bytes
THREADS, LEAST_BYTES = 4, 2**20  # that copy one array, from this size on


class Lazy:
    """An array that is read where it is used: `np.asarray(lazy)`, `place(lazy)`; `lazy[i]` is its i-th row, lazy too.

    Attributes:
      shape, dtype: known without reading.
      origin: name of what it is read from; arrays of one origin are best read one after the other.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    origin: str

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"Lazy({self.dtype}{list(self.shape)}{f' of {self.origin}' if self.origin else ''})"

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator["Lazy"]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return on_host(self, [(slice(None),) * self.ndim], np.dtype(dtype or self.dtype))[0]

    def copy_into(self, targets: Sequence[Target]) -> None:
        """Reads once, and copies parts to where they belong, in the targets' dtypes."""
        raise NotImplementedError

    def __getitem__(self, i: int) -> "Lazy":
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Stored(Lazy):
    """An array that `read` gives: a view of a mapped file, of which only the pages that are used are read, or memory.

    Nothing of it is kept.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    origin: str = ""

    def copy_into(self, targets: Sequence[Target]) -> None:
        array = self.read()
        if array.shape != self.shape:
            raise ValueError(f"{self.origin}: has shape {array.shape} where {self.shape} was announced")
        for target, index in targets:
            _copy(target, array[index])

    def __getitem__(self, i: int) -> "Stored":
        return Stored(self.shape[1:], self.dtype, lambda: self.read()[i], self.origin)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Stacked(Lazy):
    """Equal arrays along a new first axis, read one after the other: the layers of scanned blocks."""

    layers: tuple[Lazy, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.layers), *self.layers[0].shape)

    @property
    def dtype(self) -> np.dtype:
        return self.layers[0].dtype

    @property
    def origin(self) -> str:
        return self.layers[0].origin

    def copy_into(self, targets: Sequence[Target]) -> None:
        for i, layer in enumerate(self.layers):
            wanted = []
            for target, (first, *rest) in targets:
                start, stop, _ = first.indices(len(self.layers))
                if start <= i < stop:
                    wanted.append((target[i - start : i - start + 1].reshape(target.shape[1:]), tuple(rest)))
            if wanted:
                layer.copy_into(wanted)

    def __getitem__(self, i: int) -> Lazy:
        return self.layers[i]


def lazy(array: Any) -> Lazy:
    """A lazy array as it is, or an array of the host's as one."""
    if isinstance(array, Lazy):
        return array
    array = np.asarray(array)
    return Stored(array.shape, array.dtype, lambda: array)


def stacked(layers: Sequence[Any]) -> Stacked:
    """Equal arrays, lazy or not, along a new first axis. Raises ValueError if their shapes or dtypes differ."""
    found = tuple(map(lazy, layers))
    if len({(layer.shape, layer.dtype) for layer in found}) != 1:
        raise ValueError(f"layers differ: {', '.join(f'{layer.shape} {layer.dtype}' for layer in found)}")
    return Stacked(found)


def place(array: Any, sharding: Sharding | None = None, dtype: Any = None) -> jax.Array:
    """An array on devices: each is given its own part, straight from the host.

    Args:
      array: lazy, or of the host's.
      sharding: where it goes, on one process or many; the default device, uncommitted, without.
      dtype: of the result; the array's own by default.

    Returns when the numbers are there, so that nothing stays on the host.
    """
    source = lazy(array)
    dtype = jax.dtypes.canonicalize_dtype(dtype or source.dtype)
    if sharding is None:
        (whole,) = on_host(source, [(slice(None),) * source.ndim], dtype)
        return jax.block_until_ready(put(whole, None))
    devices: dict[tuple, list[jax.Device]] = collections.defaultdict(list)
    indices: dict[tuple, Index] = {}
    for device, index in sharding.addressable_devices_indices_map(source.shape).items():
        key = tuple(part.indices(size) for part, size in zip(index, source.shape))
        devices[key].append(device)
        indices[key] = index
    parts = on_host(source, list(indices.values()), dtype)
    shards = [
        put(part, SingleDeviceSharding(device, memory_kind=sharding.memory_kind))
        for key, part in zip(indices, parts)
        for device in devices[key]
    ]
    del parts
    made = jax.make_array_from_single_device_arrays(source.shape, sharding, shards, dtype=dtype)
    return jax.block_until_ready(made)


def place_tree(tree: Tree, shardings: Tree | Sharding | None = None) -> Tree:
    """`place` for the leaves of a tree of dictionaries, one after the other; what is on devices already is moved.

    Args:
      shardings: a tree like it, or one sharding for all; the default device without.
    """
    leaves = paths.flatten(tree)
    if shardings is None or isinstance(shardings, Sharding):
        where: Mapping[str, Sharding | None] = dict.fromkeys(leaves, shardings)
    else:
        where = paths.flatten(shardings)
        if different := sorted(where.keys() ^ leaves.keys()):
            raise ValueError(f"the shardings are not those of these arrays: {', '.join(different[:5])}")
    found = {}
    for path in reading_order(leaves):
        leaf = leaves[path]
        found[path] = jax.device_put(leaf, where[path]) if isinstance(leaf, jax.Array) else place(leaf, where[path])
    return paths.map_with_path(lambda path, _: found[path], tree)


def reading_order(arrays: Mapping[str, Any]) -> list[str]:
    """The names of arrays, those of one origin one after the other."""
    return sorted(arrays, key=lambda name: getattr(arrays[name], "origin", ""))


def put(part: np.ndarray, where: Sharding | None) -> jax.Array:
    """Gives one device its part. All placement goes through here."""
    return jax.device_put(part, where)


def on_host(array: Lazy, indices: Sequence[Index], dtype: np.dtype) -> list[np.ndarray]:
    """Parts of an array in memory of their own, which is read once for all."""
    parts = [_aligned(_part_shape(array.shape, index), dtype) for index in indices]
    array.copy_into([(part, tuple(index)) for part, index in zip(parts, indices)])
    return parts


def _part_shape(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    return tuple(len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True))


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that begins at a multiple of ALIGNMENT.

    NumPy asks the system for huge pages from HUGE bytes on: when several threads are the first to write to them, this
    took three times as long as everything else, so such memory is mapped without asking.
    """
    length = math.prod(shape) * dtype.itemsize
    if length >= HUGE and hasattr(mmap, "MAP_ANONYMOUS"):
        mapped = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return np.frombuffer(mapped, dtype).reshape(shape)
    raw = np.empty(length + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + length].view(dtype).reshape(shape)


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(THREADS)


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """Copies numbers into memory in the target's order and dtype, large arrays by several threads."""
    if target.nbytes < LEAST_BYTES:
        _copy_tiles(target, source)
        return
    axis = int(np.argmax(target.shape))
    step = max(-(-target.shape[axis] // THREADS), 1)
    cuts = [(slice(None),) * axis + (slice(start, start + step),) for start in range(0, target.shape[axis], step)]
    list(_threads().map(lambda cut: _copy_tiles(target[cut], source[cut]), cuts))


def _copy_tiles(target: np.ndarray, source: np.ndarray) -> None:
    """Copies tile by tile where the orders of the axes differ, so that both are used line by line of the cache."""
    for tile in _tiles(source):
        np.copyto(target[tile], source[tile], casting="unsafe")


def _tiles(source: np.ndarray) -> Iterator[tuple]:
    """Tiles of the axis along which the source's numbers are neighbours, and of the last, where the target's are."""
    last = source.ndim - 1
    axis = last
    if source.ndim > 1:
        axis = min(range(source.ndim), key=lambda i: (abs(source.strides[i]) if source.shape[i] > 1 else math.inf, -i))
    if axis == last:
        yield (...,)
        return
    width = max(LINE // source.itemsize, 1)
    whole = [slice(None)] * source.ndim
    for i, j in itertools.product(range(0, source.shape[axis], TILE), range(0, source.shape[last], width)):
        whole[axis], whole[last] = slice(i, i + TILE), slice(j, j + width)
        yield tuple(whole)

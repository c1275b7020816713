"""Arrays of a .npz by name, each read at its use."""

import io
import math
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from vitvlm.core.files import DAMAGE
from vitvlm.pretrained.entries import Entry, Tensors, WeightsError, checked_shape
from vitvlm.pretrained.mapping import Archive

LONGEST_HEADER = 2**16  # bytes; NumPy's own have some hundred
DEEPEST = 10_000  # layers


def open_npz(path: Path) -> Tensors:
    """The arrays of a .npz by name, without pickles; a bfloat16 array, which .npz cannot name, is understood.

    Only headers are read now. An array of `np.savez` is mapped; one of `np.savez_compressed` cannot be read in part,
    and is decompressed as a whole, one at a time.

    Raises WeightsError for a file that is damaged, or an array whose header does not fit its size.
    """
    archive = Archive(path, ".npz file")
    entries: dict[str, Entry] = {}
    for member in archive.members:
        name = member.removesuffix(".npy")
        if name in entries:
            raise WeightsError(f"{path}: damaged: it holds two arrays {name:.60}")
        entries[name] = _entry(archive, member)
    return Tensors(entries)


def _entry(archive: Archive, name: str) -> Entry:
    where = f"{archive.path}: {name:.200}"
    file = io.BytesIO(archive.head(name, LONGEST_HEADER))
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
    except (*DAMAGE, MemoryError) as error:  # the last of what nests too deep
        raise WeightsError(f"{where}: no whole .npy array: {error}; copy it again") from None
    start, size = file.tell(), archive.members[name].file_size
    shape = checked_shape(shape, where)
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise WeightsError(f"{where}: objects and Fortran order are not read")
    if start + math.prod(shape) * dtype.itemsize != size:
        raise WeightsError(f"{where}: {shape} {dtype!s:.60} do not fit its {size:,} bytes")
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype
    if (dtype.kind == "V" and dtype != ml_dtypes.bfloat16) or not dtype.itemsize:
        raise WeightsError(f"{where}: holds {dtype!s:.60}, which are no numbers")
    return Entry(shape, dtype, lambda: archive.bytes(name)[start:].view(dtype).reshape(shape))


def unstacked(tensors: Tensors) -> Tensors:
    """Encoders that were scanned hold [depth, …] under "encoderblock/": the same as "encoderblock_0/", …

    Raises ValueError for what cannot be cut into layers.
    """
    entries: dict[str, Entry] = {}
    for name, entry in tensors.entries.items():
        if "/encoderblock/" not in name:
            entries[name] = entry
            continue
        if not entry.shape or entry.shape[0] > DEEPEST:
            raise ValueError(f"{name:.200}: {entry.shape} is no stack of layers")
        for i in range(entry.shape[0]):
            read = partial(lambda entry, i: entry.read()[i], entry, i)
            entries[name.replace("/encoderblock/", f"/encoderblock_{i}/")] = Entry(entry.shape[1:], entry.dtype, read)
    return Tensors(entries)

"""Arrays of a .npz by name, each read at its use."""

import math
import zipfile
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from vitvlm.pretrained.entries import Entry, Tensors, WeightsError
from vitvlm.pretrained.mapping import Archive


def open_npz(path: Path) -> Tensors:
    """The arrays of a .npz by name, without pickles; a bfloat16 array, which .npz cannot name, is understood.

    Only headers are read now. An array of `np.savez` is mapped; one of `np.savez_compressed` cannot be read in part,
    and is decompressed as a whole, one at a time.

    Raises WeightsError for a file that is damaged, or an array whose header does not fit its size.
    """
    try:
        archive = Archive(path)
        return Tensors({name.removesuffix(".npy"): _entry(archive, name) for name in archive.members})
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: no whole .npz file: {error}; copy it again") from None


def _entry(archive: Archive, name: str) -> Entry:
    with archive.zip.open(name) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        start = file.tell()
    size = archive.members[name].file_size
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise WeightsError(f"{archive.path}: {name}: objects and Fortran order are not read")
    if start + math.prod(shape) * dtype.itemsize != size:
        raise WeightsError(f"{archive.path}: {name}: {shape} {dtype} do not fit its {size:,} bytes")
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype
    return Entry(shape, dtype, lambda: archive.bytes(name)[start:].view(dtype).reshape(shape))


def unstacked(tensors: Tensors) -> Tensors:
    """Encoders that were scanned hold [depth, …] under "encoderblock/": the same as "encoderblock_0/", …"""
    entries: dict[str, Entry] = {}
    for name, entry in tensors.entries.items():
        if "/encoderblock/" not in name:
            entries[name] = entry
            continue
        for i in range(entry.shape[0]):
            read = partial(lambda entry, i: entry.read()[i], entry, i)
            entries[name.replace("/encoderblock/", f"/encoderblock_{i}/")] = Entry(entry.shape[1:], entry.dtype, read)
    return Tensors(entries)

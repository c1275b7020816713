"""Arrays of a .npz by name, each read at its use."""

import math
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vitvlm.pretrained.entries import Entry, Tensors, WeightsError


def open_npz(path: Path) -> Tensors:
    """The arrays of a .npz by name, without pickles; a bfloat16 array, which .npz cannot name, is understood.

    Raises WeightsError for a file that is damaged, or an array whose header does not fit its size.
    """
    try:
        archive = zipfile.ZipFile(path)
        return Tensors(
            {
                member.filename.removesuffix(".npy"): Entry(*_header(path, archive, member))
                for member in archive.infolist()
            }
        )
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: no whole .npz file: {error}; copy it again") from None


def _header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], Any]:
    """The array's shape, and a function that reads it."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        start = file.tell()
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise WeightsError(f"{path}: {member.filename}: objects and Fortran order are not read")
    if start + math.prod(shape) * dtype.itemsize != member.file_size:
        raise WeightsError(f"{path}: {member.filename}: {shape} {dtype} do not fit its {member.file_size:,} bytes")
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype
    return shape, partial(_read, archive, member, start, dtype, shape)


def _read(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, start: int, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    try:
        return np.frombuffer(archive.read(member), dtype, offset=start).reshape(shape)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{archive.filename}: damaged: {error}; copy it again") from None


def unstacked(tensors: Tensors) -> Tensors:
    """Encoders that were scanned hold [depth, …] under "encoderblock/": the same as "encoderblock_0/", …"""
    entries: dict[str, Entry] = {}
    for name, entry in tensors.entries.items():
        if "/encoderblock/" not in name:
            entries[name] = entry
            continue
        for i in range(entry.shape[0]):
            read = partial(lambda entry, i: entry.read()[i], entry, i)
            entries[name.replace("/encoderblock/", f"/encoderblock_{i}/")] = Entry(entry.shape[1:], read)
    return Tensors(entries)

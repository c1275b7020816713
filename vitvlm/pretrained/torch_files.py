"""The tensors of PyTorch's files, read without unpickling: archives, TorchScript's too, and files from before 1.6."""

import io
import math
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from vitvlm.core.files import open_regular
from vitvlm.pretrained import pickles
from vitvlm.pretrained.entries import Entry, Tensors, WeightsError, checked_shape
from vitvlm.pretrained.mapping import Archive, mapped
from vitvlm.pretrained.pickles import Storage, Strided

LARGEST_PICKLE = 64 * 2**20  # bytes; it holds names and shapes only

PICKLE = b"\x80"  # what a file from before 1.6 begins with
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of a file from before 1.6: its first two pickles


def open_torch(path: Path) -> Tensors:
    """The tensors of a file; names inside nested dictionaries are joined by dots: "model.patch_embed.proj.weight".

    Only their names, shapes and dtypes are read now; their numbers are mapped where they are used.

    The result's `opaque` names the classes of objects beside the tensors, which are skipped.

    Raises WeightsError for a file that PyTorch did not write, is cut short, asks to call what no file of tensors
    needs, or holds a tensor that lies outside its storage.
    """
    try:
        with open_regular(path) as file:
            start = file.read(1)
        return _open_legacy(path) if start == PICKLE else _open_archive(path)
    except (OSError, struct.error) as error:
        raise WeightsError(f"{path}: no whole PyTorch archive: {error}; copy it again") from None


def _open_archive(path: Path) -> Tensors:
    archive = Archive(path, "PyTorch archive")
    members = {name.partition("/")[2]: member for name, member in archive.members.items()}
    if len(members) < len(archive.members):
        raise WeightsError(f"{path}: damaged: it holds two files of one name, but for their first folder")
    if "data.pkl" not in members:
        raise WeightsError(f"{path}: no PyTorch archive: it holds no data.pkl; save it again with a recent PyTorch")
    pickle = archive.small(members["data.pkl"].filename, LARGEST_PICKLE)
    if "byteorder" in members and archive.small(members["byteorder"].filename, LARGEST_PICKLE) != b"little":
        raise WeightsError(f"{path}: its numbers are big-endian; save it again on a usual machine")
    found, opaque = pickles.tensors_in(path, pickles.read(path, io.BytesIO(pickle)))
    for name, tensor in found.items():
        storage, member = tensor.storage, members.get(f"data/{tensor.storage.key}")
        if member is None or member.file_size != storage.size * storage.dtype.itemsize:
            held = "not there" if member is None else f"{member.file_size:,} bytes"
            raise WeightsError(
                f"{path}: {name}: its storage of {storage.size:,} {storage.dtype} is {held}; copy it again"
            )
        archive.check_stored(member)

    def numbers(storage: Storage) -> np.ndarray:
        return archive.bytes(members[f"data/{storage.key}"].filename).view(storage.dtype)

    return _entries(path, found, opaque, numbers)


def _open_legacy(path: Path) -> Tensors:
    """Pickles of a number, a version and the machine, of the content, and of the storages' keys; then their numbers."""
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(LARGEST_PICKLE))
        if pickles.read(path, stream) != MAGIC:
            raise WeightsError(f"{path}: a pickle, but not one of PyTorch's: save tensors with torch.save")
        if (version := pickles.read(path, stream)) != PROTOCOL:
            told = f"{version!r:.60}" if pickles.is_key(version) else f"that is a {type(version).__name__}"
            raise WeightsError(f"{path}: version {told} of PyTorch's files from before 1.6; {PROTOCOL} is read")
        machine = pickles.read(path, stream)
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise WeightsError(f"{path}: its numbers are big-endian; save it again on a usual machine")
        storages: dict[str, Storage] = {}
        found, opaque = pickles.tensors_in(path, pickles.read(path, stream, storages))
        keys = pickles.read(path, stream)
        places: dict[str, int] = {}
        end, place = file.seek(0, io.SEEK_END), stream.tell()
        for key in keys if isinstance(keys, list) else ():
            storage = storages.get(str(key)) if pickles.is_key(key) else None
            if storage is None:
                told = f"{key!r:.60}" if pickles.is_key(key) else f"by a {type(key).__name__}"
                raise WeightsError(f"{path}: lists a storage {told} that its pickle does not name; copy it again")
            file.seek(place)
            (size,) = struct.unpack("<q", file.read(8))
            places[storage.key] = place + 8
            place += 8 + storage.size * storage.dtype.itemsize
            if size != storage.size or place > end:
                raise WeightsError(
                    f"{path}: its storage of {storage.size:,} {storage.dtype} is not there in whole; copy it again"
                )
    if missing := sorted(storages.keys() - places.keys()):
        raise WeightsError(f"{path}: lists no storage {', '.join(missing[:5])}; copy it again")

    def numbers(storage: Storage) -> np.ndarray:  # which has no checksum
        return mapped(path, places[storage.key], storage.dtype, (storage.size,))

    return _entries(path, found, opaque, numbers)


def _entries(
    path: Path, found: Mapping[str, Strided], opaque: list[str], numbers: Callable[[Storage], np.ndarray]
) -> Tensors:
    """`numbers` maps a storage."""
    for name, tensor in found.items():
        _check(path, name, tensor)
    entries = {
        name: Entry(tensor.shape, tensor.storage.dtype, partial(_read, numbers, tensor))
        for name, tensor in found.items()
    }
    return Tensors(entries, tuple(opaque))


def _check(path: Path, name: str, tensor: Strided) -> None:
    storage = tensor.storage
    checked_shape(tensor.shape, f"{path}: {name}")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides))
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if any(number < 0 for number in numbers) or (math.prod(tensor.shape) and last >= storage.size):
        raise WeightsError(f"{path}: {name}: shape {tensor.shape}, strides {tensor.strides} lie outside its storage")
    if math.prod(tensor.shape) > storage.size:
        raise WeightsError(f"{path}: {name}: shape {tensor.shape} repeats its storage of {storage.size:,} numbers")


def _read(numbers: Callable[[Storage], np.ndarray], tensor: Strided) -> np.ndarray:
    if not math.prod(tensor.shape):
        return np.zeros(tensor.shape, tensor.storage.dtype)
    held = numbers(tensor.storage)[tensor.offset :]
    steps = tuple(step * held.itemsize if n > 1 else 0 for n, step in zip(tensor.shape, tensor.strides))
    return np.lib.stride_tricks.as_strided(held, tensor.shape, steps, writeable=False)

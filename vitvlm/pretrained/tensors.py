"""The tensors of a checkpoint folder, by name, in one file or in shards. Nothing there is executed."""

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vitvlm.core import json_texts
from vitvlm.core.files import open_regular, read_text
from vitvlm.pretrained.entries import Entry, Tensors, WeightsError, checked_shape
from vitvlm.pretrained.mapping import mapped
from vitvlm.pretrained.torch_files import open_torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
Format = tuple[str, str, Callable[[Path], Tensors]]  # a file, an index of shards, and what opens either
LARGEST_JSON = 32 * 2**20  # bytes; the index of the largest published models is a tenth of it


def open_folder(folder: Path, formats: Sequence[Format] | None = None) -> Tensors:
    """The tensors of one file, or of the shards that an index lists: safetensors or, where there are none, PyTorch's.

    Args:
      formats: the names of the files, see FORMATS, which is the default.

    Raises WeightsError if there is neither, a shard is missing, cut short or of another format, or the index names a
    tensor that its shard does not hold or leaves out one that it does.
    """
    formats = formats or FORMATS
    for single, index, open_one in formats:
        if (folder / single).is_file():
            return open_one(folder / single)
        if (folder / index).is_file():
            return _open_shards(folder, index, open_one)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) if folder.is_dir() else "no such folder"
    names = " nor ".join(name for single, index, _ in formats for name in (single, index))
    raise WeightsError(f"{folder}: neither {names}; there is: {found}")


def _open_shards(folder: Path, index: str, open_one: Callable[[Path], Tensors]) -> Tensors:
    places = read_json(folder / index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise WeightsError(f"{folder / index}: has no weight_map from tensors to files")
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise WeightsError(f"{folder / index}: {name!r} is not a file in the same folder")
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / index}: names the shard {name}, which is not there: copy it too")
    shards = {name: open_one(folder / name) for name in sorted(set(places.values()))}
    for name, shard in shards.items():
        listed = {tensor for tensor, file in places.items() if file == name}
        if different := sorted(listed ^ set(shard)):
            raise WeightsError(f"{folder / name}: its tensors are not those of the index: {', '.join(different)}")
    return Tensors({tensor: shards[file].entries[tensor] for tensor, file in places.items()})


def open_file(path: Path) -> Tensors:
    """Opens the tensors of a safetensors or PyTorch file, recognised by its first bytes, not by its suffix.

    Raises WeightsError for any other file, and for a damaged one.
    """
    try:
        with open_regular(path) as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from None
    if start.startswith((b"PK", b"\x80")):
        return open_torch(path)
    if start[8:9] == b"{":
        return open_safetensors(path)
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: a pointer of Git LFS, not the file itself: fetch that with git lfs pull")
    if start[257:262] == b"ustar":
        raise WeightsError(f"{path}: a tar, as PyTorch 0.1 wrote: save it again with a recent PyTorch")
    if start.lstrip().startswith(b"<"):
        raise WeightsError(f"{path}: a web page, not weights")
    raise WeightsError(f"{path}: neither safetensors nor a file of PyTorch's: it begins with {start[:8]!r}")


def open_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, mapped; its header is checked against the length of the file first."""
    try:
        with open_regular(path) as file, safe_open(path, framework="numpy"):
            (length,) = struct.unpack("<Q", file.read(8))
            header = json_texts.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: no whole safetensors file: {error}; copy it again") from None
    header.pop("__metadata__", None)
    if unknown := sorted({each["dtype"] for each in header.values()} - set(DTYPES)):
        raise WeightsError(f"{path}: holds numbers of type {', '.join(unknown)}; there is: {', '.join(DTYPES)}")
    return Tensors({name: _mapped_entry(path, 8 + length, name, each) for name, each in header.items()})


def _mapped_entry(path: Path, start: int, name: str, described: Mapping[str, Any]) -> Entry:
    """A tensor whose bytes lie at `data_offsets` after `start`. It is mapped again for each use."""
    shape, (begin, _) = checked_shape(described["shape"], f"{path}: {name:.200}"), described["data_offsets"]
    dtype = np.dtype(DTYPES[described["dtype"]])
    return Entry(shape, dtype, partial(mapped, path, start + begin, dtype, shape))


def write_folder(tensors: Mapping[str, np.ndarray], folder: Path, name: str = SINGLE) -> None:
    """Writes safetensors, bfloat16 too. A file that is there is replaced when the new one is whole."""
    unfinished = folder / f"{name}.unfinished"
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}  # a scalar stays one
    save_file(contiguous, unfinished, {"format": "pt"})
    unfinished.replace(folder / name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises WeightsError if it is none, is not there, or is absurdly large."""
    try:
        value = json_texts.loads(read_text(path, LARGEST_JSON))
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: holds a {type(value).__name__} where an object is expected")
    return value


# The first that a folder has is read.
FORMATS: Sequence[Format] = (
    (SINGLE, INDEX, open_safetensors),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", open_torch),
)

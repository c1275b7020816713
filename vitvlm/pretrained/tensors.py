"""The tensors of a checkpoint folder, by name, in one file or in shards. Nothing there is executed."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vitvlm.pretrained.entries import Entry, Tensors, WeightsError
from vitvlm.pretrained.torch_files import open_torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_JSON = 32 * 2**20  # bytes; the index of the largest published models is a tenth of it


def open_folder(folder: Path) -> Tensors:
    """The tensors of one file, or of the shards that an index lists: safetensors or, where there are none, PyTorch's.

    Raises WeightsError if there is neither, a shard is missing, cut short or of another format, or the index names a
    tensor that its shard does not hold or leaves out one that it does.
    """
    for single, index, open_one in FORMATS:
        if (folder / single).is_file():
            return open_one(folder / single)
        if (folder / index).is_file():
            return _open_shards(folder, index, open_one)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) if folder.is_dir() else "no such folder"
    names = " nor ".join(name for single, index, _ in FORMATS for name in (single, index))
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


def open_safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file; its header is checked against the length of the file."""
    try:
        file = safe_open(path, framework="numpy")
        names = file.keys()
        return Tensors(
            {name: Entry(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name)) for name in names}
        )
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: no whole safetensors file: {error}; copy it again") from None


def write_folder(tensors: Mapping[str, np.ndarray], folder: Path) -> None:
    """Writes `model.safetensors`, bfloat16 too. A file that is there is replaced when the new one is whole."""
    unfinished = folder / f"{SINGLE}.unfinished"
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}  # a scalar stays one
    save_file(contiguous, unfinished, {"format": "pt"})
    unfinished.replace(folder / SINGLE)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises WeightsError if it is none, is not there, or is absurdly large."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise WeightsError(f"{path}: {path.stat().st_size:,} bytes of JSON; at most {LARGEST_JSON:,} are read")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: holds a {type(value).__name__} where an object is expected")
    return value


# A file, an index of shards, and what opens either; the first that a folder has is read.
FORMATS = (
    (SINGLE, INDEX, open_safetensors),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", open_torch),
)

"""The tensors of a checkpoint folder, by name: safetensors, in one file or in shards. Nothing there is executed."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_JSON = 32 * 2**20  # bytes; the index of the largest published models is a tenth of it


class WeightsError(ValueError):
    """Weights on disk that cannot be used; the message names the file and what is wrong with it."""


class Tensors(Mapping[str, np.ndarray]):
    """Names to arrays, each read when it is asked for and not kept: a large model is never held twice."""

    def __init__(self, files: Mapping[str, Any]):
        """`files`: for each name the open file that holds it."""
        self._files = files

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, from the files' headers alone."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._files.items()}


def open_folder(folder: Path) -> Tensors:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` lists.

    Raises WeightsError if there is neither, a shard is missing, cut short or not safetensors, or the index names a
    tensor that its shard does not hold or leaves out one that it does.
    """
    if (folder / SINGLE).is_file():
        file = open_file(folder / SINGLE)
        return Tensors(dict.fromkeys(file.keys(), file))
    if not (folder / INDEX).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) if folder.is_dir() else "no such folder"
        raise WeightsError(f"{folder}: neither {SINGLE} nor {INDEX}; there is: {found}")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise WeightsError(f"{folder / INDEX}: has no weight_map from tensors to files")
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise WeightsError(f"{folder / INDEX}: {name!r} is not a file in the same folder")
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / INDEX}: names the shard {name}, which is not there: copy it too")
    shards = {name: open_file(folder / name) for name in sorted(set(places.values()))}
    for name, shard in shards.items():
        listed = {tensor for tensor, file in places.items() if file == name}
        if different := sorted(listed ^ set(shard.keys())):
            raise WeightsError(f"{folder / name}: its tensors are not those of the index: {', '.join(different)}")
    return Tensors({tensor: shards[file] for tensor, file in places.items()})


def open_file(path: Path) -> Any:
    """An open safetensors file; its header is checked against the length of the file."""
    try:
        return safe_open(path, framework="numpy")
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

"""MNIST's file format (idx): Fashion-MNIST and its relatives, held in memory as pixels."""

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from vitvlm.core import files
from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import stat_data
from vitvlm.data.errors import DataError
from vitvlm.data.sources.base import Example, Source

_PREFIXES = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08
MOST_BYTES = 2**31  # of one file; EMNIST has half a GB


class IdxSource(Source):
    """One split of a directory with `train-images-idx3-ubyte[.gz]` and its three siblings; images [28, 28, 1]."""

    def __init__(self, path: str | Path, split: str, label_names: Sequence[str] = ()):
        if split not in _PREFIXES:
            raise ConfigError(f"split {split!r} of {path}: no such split; {suggest(split, _PREFIXES)}")
        prefix = _PREFIXES[split]
        self._paths = [_find(Path(path), f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
        self._images = read_idx(self._paths[0])
        self._labels = read_idx(self._paths[1]).astype(np.int32)
        if self._images.ndim != 3 or self._labels.shape != self._images.shape[:1]:
            raise DataError(f"{path}: images {self._images.shape} and labels {self._labels.shape} do not fit together")
        self.label_names = tuple(label_names) or tuple(str(i) for i in range(int(self._labels.max()) + 1))
        if self._labels.max() >= len(self.label_names):
            raise DataError(f"{path}: label {self._labels.max()} in a set of {len(self.label_names)} classes")
        self._split = split

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        return self._labels

    @property
    def ids(self) -> Sequence[str]:
        return [f"{self._split}-{i}" for i in range(len(self))]

    def stamps(self) -> Mapping[str, str]:
        return stat_data.described({path.name: path for path in self._paths})

    def __getitem__(self, index: int) -> Example:
        return {
            "image": self._images[index][..., None],
            "label": int(self._labels[index]),
            "id": f"{self._split}-{index}",
        }


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """An idx file of unsigned bytes: two zero bytes, type, rank, then each dimension big-endian, then the values.

    Raises DataError if the file is damaged or of another type.
    """
    try:
        content = files.read_bytes(path, MOST_BYTES)
        content = files.gunzip(content, MOST_BYTES) if path.suffix == ".gz" else content
        zero, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, offset=4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    except (OSError, ValueError, struct.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch the file again") from error
    if zero or kind != _UNSIGNED_BYTE or values.size != math.prod(shape):
        raise DataError(f"{path}: not an idx file of {shape!r:.60} bytes; fetch the file again")
    return values.reshape(shape)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder}: holds neither {name} nor {name}.gz")

"""Arrays on disk that are computed once, each found by a digest; in files that appear whole or not at all."""

import hashlib
import os
import pathlib
import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped

DIGEST = np.dtype("V16")
NONE = bytes(DIGEST.itemsize)
"""Digest of nothing, whose row is zeros."""

_FILE = re.compile(r"(.+)-([0-9a-f]{16})\.npy")
_ROWS = "features"


def digest(*arrays: Shaped[np.ndarray, "..."]) -> bytes:
    """Returns 16 bytes by which the contents of arrays are told from any others'."""
    found = hashlib.blake2b(digest_size=DIGEST.itemsize)
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array))
    return found.digest()


class FeatureStore:
    """A folder with files of rows, and with tables that say which rows a data set is made of.

    A file's name ends with its checksum, which the store's key is a part of: a file of another store is a damaged one.

    Attributes:
      folder: on a local disk. key: of the store, at most 64 characters.
      dtype: of a row: a structured one, whose field "digest" it is found by.
    """

    def __init__(self, folder: pathlib.Path, key: str, dtype: np.dtype):
        self.folder, self.key, self.dtype = folder, key, dtype
        self._places: dict[bytes, tuple[np.ndarray, int]] = {}

    def open(self, say: Callable[[str], None]) -> None:
        """Opens the files of rows, each read once for its checksum; one that is damaged is deleted, and `say` told."""
        self._places = {}
        for path in self.folder.glob("tmp-*"):
            path.unlink()  # of a job that was killed
        for path in sorted(self.folder.glob(f"{_ROWS}-*.npy")):
            if self._is_whole(path, say):
                self._take(path)

    def add(self, rows: Shaped[np.ndarray, " n"]) -> None:
        """Writes rows as a file."""
        self._take(self._write(_ROWS, rows))

    def table(self, name: str, say: Callable[[str], None]) -> Shaped[np.ndarray, " rows"] | None:
        """Reads a table; None if there is none that is whole."""
        for path in sorted(self.folder.glob(f"{name}-*.npy")):
            if self._is_whole(path, say):
                return np.load(path)
        return None

    def write_table(self, name: str, rows: Shaped[np.ndarray, " rows"]) -> None:
        """Writes a table in the place of one of that name."""
        path = self._write(name, rows)
        for other in self.folder.glob(f"{name}-*.npy"):
            if other != path:
                other.unlink()

    def __contains__(self, digest: bytes) -> bool:
        return digest == NONE or digest in self._places

    def __getitem__(self, digests: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Returns a copy of the rows of digests."""
        found = np.zeros(digests.shape, self.dtype)
        for place in np.ndindex(digests.shape):
            if (which := digests[place].tobytes()) != NONE:
                rows, at = self._places[which]
                found[place] = rows[at]
        return found

    def _take(self, path: pathlib.Path) -> None:
        rows = np.load(path, mmap_mode="r")
        self._places |= {which.tobytes(): (rows, at) for at, which in enumerate(rows["digest"])}

    def _write(self, name: str, rows: Shaped[np.ndarray, " n"]) -> pathlib.Path:
        """Writes a file, whole or not at all: it is on the disk before it has its name."""
        temporary = self.folder / f"tmp-{os.getpid()}"
        with temporary.open("wb") as file:
            np.save(file, rows)
            file.flush()
            os.fsync(file.fileno())
        path = self.folder / f"{name}-{self._checksum(temporary)}.npy"
        return temporary.replace(path)

    def _is_whole(self, path: pathlib.Path, say: Callable[[str], None]) -> bool:
        named = _FILE.fullmatch(path.name)
        if named and named[2] == self._checksum(path):
            return True
        say(f"{path}: damaged, or of other features: its checksum is not that of its name; it is computed again")
        path.unlink()
        return False

    def _checksum(self, path: pathlib.Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(key=self.key.encode(), digest_size=8)).hexdigest()

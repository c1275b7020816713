"""Headers of GGUF files, the format of llama.cpp: metadata, and where the tensors lie.

A file is read as what it is, data from anywhere: every count and length is checked against the bytes that are there
before anything is made of it.
"""

import dataclasses
import math
import mmap
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MOST_AXES = 4
PART = re.compile(r"(.+\.gguf)\.part(\d+)")  # one file, cut anywhere
SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")  # several files, each with tensors of its own


class GGUFError(ValueError):
    """A GGUF file that is cut, damaged or of another kind; the message names the file."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One tensor: its shape, the last axis that of neighbouring numbers; the number of its type; and its first byte."""

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclasses.dataclass(frozen=True)
class Header:
    """The beginning of a file: what it says before its numbers.

    Fields:
      metadata: values by key: numbers, texts, and arrays as lists (of texts) or NumPy arrays (of numbers).
      tensors: by name.
      parts: the files that hold the bytes, one after the other.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    parts: tuple[Path, ...]

    @property
    def size(self) -> int:
        return sum(part.stat().st_size for part in self.parts)

    def bytes(self, start: int, count: int) -> np.ndarray:
        """Bytes from a place on, uint8 [count]: mapped, unless they lie in two parts. Raises GGUFError if cut off."""
        pieces, wanted = [], count
        for part in self.parts:
            size = part.stat().st_size
            if wanted and start < size:
                taken = min(wanted, size - start)
                pieces.append(np.memmap(part, np.uint8, "r", start, (taken,)))
                start, wanted = start + taken, wanted - taken
            start -= size
        if wanted:
            raise GGUFError(f"{self.path}: ends {wanted:,} bytes too early: cut; copy it again")
        return np.concatenate(pieces) if len(pieces) != 1 else pieces[0]


def is_gguf(path: Path) -> bool:
    """Tells by its name whether a file is a GGUF, or the part of one."""
    return path.suffix == ".gguf" or bool(PART.fullmatch(path.name))


def read(path: Path) -> Header:
    """Reads the header of a file.

    Args:
      path: model.gguf; or model.gguf.part00, to which part01 and so on are added from the same folder.

    Raises GGUFError for a file that is not there, cut, of another format or version, or that is damaged.
    """
    parts = _parts(path)
    try:
        if not parts[0].stat().st_size:
            raise GGUFError(f"{path}: is empty")
        with parts[0].open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            metadata, tensors = _Reader(path, data).header()
    except OSError as error:
        raise GGUFError(f"{path}: {error.strerror or error}") from None
    return Header(path, metadata, tensors, parts)


def split_files(header: Header) -> list[Path]:
    """The files of a model that `gguf-split` wrote, of which the header is the first's: the file alone, or all.

    Raises GGUFError where one is missing, or the header is not the first's.
    """
    count = header.metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return [header.path]
    found = SPLIT.fullmatch(header.path.name)
    if header.metadata.get("split.no") != 0 or found is None or int(found[3]) != count:
        raise GGUFError(f"{header.path}: one of {count} files of a model: give the first, …-00001-of-{count:05}.gguf")
    files = [header.path.with_name(f"{found[1]}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise GGUFError(f"{header.path}: {missing[0]} is missing beside it: copy it too")
    return files


def _parts(path: Path) -> tuple[Path, ...]:
    if (found := PART.fullmatch(path.name)) is None:
        return (path,)
    if int(found[2]):
        raise GGUFError(f"{path}: the header lies in the first part: give that, {found[1]}.part{'0' * len(found[2])}")
    parts = []
    while (part := path.with_name(f"{found[1]}.part{len(parts):0{len(found[2])}}")).is_file():
        parts.append(part)
    if not parts:
        raise GGUFError(f"{path}: no such file")
    return tuple(parts)


class _Reader:
    """Goes through a header byte by byte."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.place = path, data, 0

    def header(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        if self.data[:4] != MAGIC:
            raise GGUFError(f"{self.path}: not a GGUF: it begins with {self.data[:8]!r}")
        self.place = 4
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            what = "big-endian" if swapped in VERSIONS else f"of version {version}"
            raise GGUFError(f"{self.path}: a GGUF {what}; versions {VERSIONS[0]} and {VERSIONS[1]} are read")
        tensors, entries = self.number("Q"), self.number("Q")
        self.check_count(entries, 8 + 4 + 1, "entries of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self.text("a key of the metadata")
            if key in metadata:
                raise GGUFError(f"{self.path}: damaged: two entries of metadata are {key}")
            metadata[key] = self.value(self.number("I"), key)
        self.check_count(tensors, 8 + 4 + 4 + 8, "tensors")
        found: dict[str, TensorInfo] = {}
        for _ in range(tensors):
            name = self.text("the name of a tensor")
            if name in found:
                raise GGUFError(f"{self.path}: damaged: two tensors are {name}")
            axes = self.number("I")
            if axes > MOST_AXES:
                raise GGUFError(f"{self.path}: damaged: {name} has {axes} axes; there are at most {MOST_AXES}")
            shape = tuple(reversed([self.number("Q") for _ in range(axes)]))
            if math.prod(shape) >= 2**48:
                raise GGUFError(f"{self.path}: damaged: {name} has {math.prod(shape):,} numbers")
            found[name] = TensorInfo(shape, self.number("I"), self.number("Q"))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment % 8:
            raise GGUFError(f"{self.path}: damaged: general.alignment is {alignment!r}")
        start = -(-self.place // alignment) * alignment
        return metadata, {name: dataclasses.replace(info, start=start + info.start) for name, info in found.items()}

    def number(self, kind: str) -> Any:
        size = struct.calcsize(kind)
        return struct.unpack("<" + kind, self.bytes(size))[0]

    def bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.place:
            raise GGUFError(f"{self.path}: its header is cut at byte {len(self.data):,}; copy it again")
        self.place += count
        return self.data[self.place - count : self.place]

    def text(self, what: str) -> str:
        try:
            return self.bytes(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise GGUFError(f"{self.path}: damaged: {what} is not UTF-8: {error.reason}") from None

    def value(self, kind: int, key: str) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text(key)
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind in NUMBERS:
                dtype = np.dtype("<" + NUMBERS[kind])
                self.check_count(count, dtype.itemsize, f"values of {key}")
                return np.frombuffer(self.bytes(count * dtype.itemsize), dtype)
            if kind == STRING:
                self.check_count(count, 8, f"values of {key}")
                return [self.text(key) for _ in range(count)]
        raise GGUFError(f"{self.path}: damaged: {key} is of type {kind}, which metadata does not have")

    def check_count(self, count: int, least: int, what: str) -> None:
        """Refuses a count of things, each of `least` bytes or more, that the file has no room for."""
        if count * least > len(self.data) - self.place:
            raise GGUFError(f"{self.path}: announces {count:,} {what}, more than it has room for: cut or damaged")


def texts(header: Header, key: str) -> Sequence[str]:
    """An array of texts in the metadata. Raises GGUFError if it is missing or another thing."""
    value = header.metadata.get(key)
    if not isinstance(value, list):
        raise GGUFError(f"{header.path}: has no {key}" if value is None else f"{header.path}: {key} holds no texts")
    return value

"""Numbers of files mapped into memory: only the pages that are used are read, and they go when the array does."""

import functools
import math
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np

from vitvlm.pretrained.entries import WeightsError

LOCAL_HEADER = 30  # bytes before the name in a member's own header; the last four: lengths of the name and what follows
CHUNK = 2**24  # bytes whose checksum is taken at a time


def mapped(path: Path, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The array of that shape that lies from byte `start` on; it cannot be written to."""
    if not math.prod(shape):
        return np.zeros(shape, dtype)  # nothing to map
    return np.memmap(path, dtype, "r", start, shape)


class Archive:
    """A zip file whose members are mapped where they are stored as they are, and else decompressed one at a time.

    A member's checksum is taken when it is used first. Of compressed members, the one that was read last is kept, so
    its parts are best used one after the other.
    """

    def __init__(self, path: Path):
        self.path = path
        self.zip = zipfile.ZipFile(path)
        self.members = {member.filename: member for member in self.zip.infolist()}
        self._one_at_a_time = threading.Lock()  # an archive has one place where it is read
        self._read = functools.lru_cache(maxsize=1)(self.zip.read)
        self._checked: set[str] = set()

    def bytes(self, name: str) -> np.ndarray:
        """The bytes of a member, uint8. Raises WeightsError if they do not have the checksum that the archive says."""
        member = self.members[name]
        try:
            with self._one_at_a_time:
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    return np.frombuffer(self._read(name), np.uint8)
                found = mapped(self.path, self._start(member), np.dtype(np.uint8), (member.file_size,))
                if name not in self._checked:
                    self._check(member, found)
                    self._checked.add(name)
                return found
        except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, OSError) as error:
            raise WeightsError(f"{self.path}: damaged: {error}; copy it again") from None

    def _start(self, member: zipfile.ZipInfo) -> int:
        """Finds where a member's bytes begin: behind its own header, whose length the list of members does not say."""
        with self.path.open("rb") as file:
            file.seek(member.header_offset)
            header = file.read(LOCAL_HEADER)
        if len(header) < LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
            raise zipfile.BadZipFile(f"no header of {member.filename}")
        return member.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", header[-4:]))

    def _check(self, member: zipfile.ZipInfo, found: np.ndarray) -> None:
        checksum = 0
        for start in range(0, len(found), CHUNK):
            checksum = zlib.crc32(found[start : start + CHUNK], checksum)
        if checksum != member.CRC:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r}")

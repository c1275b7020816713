"""Numbers of files mapped into memory: only the pages that are used are read, and they go when the array does."""

import contextlib
import functools
import math
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitvlm.core.files import DAMAGE, check_regular
from vitvlm.pretrained.entries import WeightsError

LOCAL_HEADER = 30  # bytes before the name in a member's own header; the last four: lengths of the name and what follows
CHUNK = 2**24  # bytes whose checksum is taken at a time
ENCRYPTED = 1  # a flag of members
FREE = 2**28  # bytes that a member may expand to however few they come from: arrays of zeros do
USUAL_RATIO = 100  # of compressed arrays; deflate can do a thousand


def mapped(path: Path, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The array of that shape that lies from byte `start` on; it cannot be written to."""
    if not math.prod(shape):
        return np.zeros(shape, dtype)  # nothing to map
    return np.memmap(path, dtype, "r", start, shape)


class Archive:
    """A zip file whose members are mapped where they are stored as they are, and else decompressed one at a time.

    A member's checksum is taken when it is used first. Of compressed members, the one that was read last is kept, so
    its parts are best used one after the other.

    Raises WeightsError, as all its methods do, for what is no zip file, is damaged, encrypted or compressed in other
    ways than by deflate, holds two members of a name, or expands to more than its size explains.
    """

    def __init__(self, path: Path, kind: str):
        """`kind` is what the file should be, for messages."""
        self.path = path
        with self._blamed(f"no whole {kind}"):
            check_regular(path)
            self.zip = zipfile.ZipFile(path)
            self.members = {member.filename: member for member in self.zip.infolist()}
            if len(self.members) < len(self.zip.infolist()):
                raise zipfile.BadZipFile("it holds two files of one name")
            for member in self.members.values():
                self._check_member(member)
        self._one_at_a_time = threading.Lock()  # an archive has one place where it is read
        self._read = functools.lru_cache(maxsize=1)(self._decompressed)
        self._checked: set[str] = set()

    def bytes(self, name: str) -> np.ndarray:
        """The bytes of a member, uint8. Raises WeightsError if they do not have the checksum that the archive says."""
        member = self.members[name]
        with self._blamed("damaged"), self._one_at_a_time:
            if member.compress_type != zipfile.ZIP_STORED:
                return np.frombuffer(self._read(name), np.uint8)
            found = mapped(self.path, self._start(member), np.dtype(np.uint8), (member.file_size,))
            if name not in self._checked:
                self._check(member, found)
                self._checked.add(name)
            return found

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of a member, as many as there are up to that count; no checksum is taken."""
        with self._blamed("damaged"), self._one_at_a_time, self.zip.open(name) as file:
            return file.read(min(count, self.members[name].file_size))

    def small(self, name: str, most: int) -> bytes:
        """A member that is stored as it is, of at most so many bytes, with its checksum compared."""
        member = self.members[name]
        if member.file_size > most:
            raise WeightsError(f"{self.path}: {name:.60} of {member.file_size:,} bytes; at most {most:,} are read")
        self.check_stored(member)
        return self.bytes(name).tobytes()

    def check_stored(self, member: zipfile.ZipInfo) -> None:
        """Raises WeightsError for a compressed member."""
        if member.compress_type != zipfile.ZIP_STORED:
            raise WeightsError(
                f"{self.path}: {member.filename:.60}: compressed, which the members of PyTorch's own files never are"
            )

    def _check_member(self, member: zipfile.ZipInfo) -> None:
        if member.flag_bits & ENCRYPTED:
            raise zipfile.BadZipFile(f"{member.filename:.60}: encrypted: save it without a password")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile(
                f"{member.filename:.60}: compressed by method {member.compress_type}; only deflate is read"
            )
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise zipfile.BadZipFile(f"{member.filename:.60}: has two sizes")
        if member.file_size > max(FREE, USUAL_RATIO * member.compress_size):
            raise zipfile.BadZipFile(
                f"{member.filename:.60}: {member.compress_size:,} bytes that expand to {member.file_size:,}"
            )

    def _decompressed(self, name: str) -> bytes:
        with self.zip.open(name) as file:
            content = file.read(self.members[name].file_size)
        if len(content) < self.members[name].file_size:
            raise zipfile.BadZipFile(f"{name:.60} is cut off")
        return content

    @contextlib.contextmanager
    def _blamed(self, told: str) -> Iterator[None]:
        """Turns what `zipfile` raises on damaged bytes into a WeightsError."""
        try:
            yield
        except WeightsError:
            raise
        except DAMAGE as error:
            raise WeightsError(f"{self.path}: {told}: {error}; copy it again") from None

    def _start(self, member: zipfile.ZipInfo) -> int:
        """Finds where a member's bytes begin: behind its own header, whose length the list of members does not say."""
        with self.path.open("rb") as file:
            file.seek(member.header_offset)
            header = file.read(LOCAL_HEADER)
        if len(header) < LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
            raise zipfile.BadZipFile(f"no header of {member.filename:.60}")
        return member.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", header[-4:]))

    def _check(self, member: zipfile.ZipInfo, found: np.ndarray) -> None:
        checksum = 0
        for start in range(0, len(found), CHUNK):
            checksum = zlib.crc32(found[start : start + CHUNK], checksum)
        if checksum != member.CRC:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r:.60}")

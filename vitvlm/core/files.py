"""Reading of files that come from anywhere: only regular ones, not above a size, and gzip within bounds.

A device such as /dev/zero never ends, a FIFO waits for ever, and 60 kB of gzip may hold 60 MB. Nothing here waits, and
nothing is read before its size was looked at.
"""

import errno
import os
import stat
import struct
import tokenize
import zipfile
import zlib
from typing import BinaryIO

MIB = 2**20
LARGEST_JSON = 2**30  # bytes; COCO's annotations are half of it
LARGEST_VOCABULARY = 128 * MIB
LARGEST_IMAGE = 512 * MIB

# What readers raise on damaged bytes: their own checks are of what a format's files usually are.
DAMAGE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, SyntaxError, EOFError, OSError),
    *(RuntimeError, struct.error, zlib.error, zipfile.BadZipFile, tokenize.TokenError),
)

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_GZIP = 31  # zlib's window bits for gzip data
_PIECE = 2**13  # compressed bytes taken at a time


class RefusedFile(OSError):
    """A file that is not read as it is; `strerror` says why."""

    def __str__(self) -> str:
        return str(self.strerror)


def open_regular(path: str | os.PathLike[str], most: int | None = None, buffering: int = -1) -> BinaryIO:
    """Opens a regular file for reading.

    Args:
      most: bytes that it may hold.
      buffering: as of `open`.

    Raises RefusedFile for anything else, for a larger one and for a name that none can have; OSError otherwise.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait
    except ValueError:  # a null character, or half of a character
        raise RefusedFile(errno.EINVAL, "no file can have its name") from None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            kind = _KINDS.get(stat.S_IFMT(about.st_mode), "something else")
            raise RefusedFile(errno.EINVAL, f"is {kind}, not a regular file")
        if most is not None and about.st_size > most:
            raise too_large(about.st_size, most)
        return os.fdopen(handle, "rb", buffering)
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: str | os.PathLike[str], most: int | None = None) -> None:
    """Raises what `open_regular` raises; for libraries that open files themselves."""
    open_regular(path, most).close()


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a regular file of at most so many bytes; errors as of `open_regular`."""
    with open_regular(path, most) as file:
        content = file.read(os.fstat(file.fileno()).st_size)
        while more := file.read(min(MIB, most + 1 - len(content))):  # it grows, or has no size as those of /proc
            content += more
    if len(content) > most:
        raise too_large(len(content), most)
    return content


def read_text(path: str | os.PathLike[str], most: int, encoding: str = "utf-8") -> str:
    """The text of a regular file, with \\n at the ends of lines. Raises UnicodeDecodeError as well."""
    return read_bytes(path, most).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def gunzip(content: bytes, most: int) -> bytes:
    """Decompresses gzip data, of several members one after the other perhaps, up to so many bytes.

    Raises RefusedFile for more, and for data that are damaged or cut off.
    """
    parts, total, place = [], 0, 0
    while place < len(content):
        member = zlib.decompressobj(_GZIP)
        while not member.eof:
            given = member.unconsumed_tail or content[place : place + _PIECE]
            place += 0 if member.unconsumed_tail else len(given)
            if not given:
                raise RefusedFile(errno.EINVAL, "its gzip data are cut off")
            try:
                parts.append(member.decompress(given, most - total + 1))
            except zlib.error as error:
                raise RefusedFile(errno.EINVAL, f"damaged gzip data: {error}") from None
            total += len(parts[-1])
            if total > most:
                raise RefusedFile(errno.EFBIG, f"its gzip data hold more than the {most:,} bytes that are read")
        place -= len(member.unused_data)
        while content[place : place + 1] == b"\0":  # padding
            place += 1
    return b"".join(parts)


def too_large(size: int, most: int) -> RefusedFile:
    """The error for something of more bytes than are read."""
    return RefusedFile(errno.EFBIG, f"{size:,} bytes, more than the {most:,} that are read")

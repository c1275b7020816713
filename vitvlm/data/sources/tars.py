"""Tar archives of samples, read from front to back or from any sample on; damage is reported, not raised.

A sample is a run of files whose names are the same up to the first dot of the last part: 000/12.jpg, 000/12.txt.
The headers are gone through here, since `tarfile` takes a damaged one in mid-archive for the archive's end.
"""

import dataclasses
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from typing import BinaryIO, NamedTuple

from vitvlm.data.sources.gzipped import GzipReader
from vitvlm.data.survey import rule_of

BLOCK = 512
END = 1 << 62  # the `end` of an archive's last sample: behind every byte
MOST_BYTES = 512 * 2**20  # of the files of a sample that are read
MOST_FILES = 1_000  # of a sample
LONGEST_NAME = 4_096  # bytes of a file's name, as on disk
LONGEST_ABOUT = 2**20  # bytes of a header's properties
LONGEST_NUMBER = 20  # digits, as of 2^64
# Header types: of the next file's name (GNU), of the next file's properties and of all files' properties (POSIX).
_LONG_NAME, _PROPERTIES, _GLOBAL_PROPERTIES = b"L", b"x", b"g"


@dataclasses.dataclass(frozen=True)
class Sample:
    """The files of one key.

    Attributes:
      key: their common name; "" where a damaged place of the archive has none.
      offset: byte at which its first header is; reading from there gives it again.
      end: byte at which the next sample begins; END after the last one.
      files: contents by extension, in lower case: {"jpg": …, "txt": …}; b"" for an extension that was not requested.
      damage: what is wrong with this part of the archive; "" for nothing.
      rest: what becomes of all that should follow: "whole" (it is read, or this is the end), "cut" (the archive ends
        too early) or "unreadable" (the system does not give it, or it is damaged).
    """

    key: str
    offset: int
    end: int
    files: Mapping[str, bytes]
    damage: str = ""
    rest: str = "whole"


@dataclasses.dataclass(frozen=True)
class _Member:
    key: str
    extension: str
    offset: int
    content: bytes
    damage: str = ""
    rest: str = "whole"
    archive: int = 0  # of those that were joined


class _Header(NamedTuple):
    """`type` is the byte that says which kind of entry this is; `regular` if it is a file."""

    name: str
    size: int
    type: bytes
    regular: bool


def samples(file: BinaryIO | GzipReader, offset: int = 0, wanted: Container[str] | None = None) -> Iterator[Sample]:
    """The samples from byte `offset` on, which must be 0 or another sample's `offset` or `end`.

    Files without an extension, hidden ones and what programs leave behind (`survey.rule_of`) are passed over. Archives
    that were joined, end marker and all, are read to the end. After a damaged header, reading goes on at the next
    whole one; what was lost in between is one Sample with `damage`. So are a file that the archive's end cuts off, an
    archive without its end marker, and compressed data from its first damage on. An archive of nothing is damaged too,
    and so is a sample of more than MOST_FILES or MOST_BYTES, of which no more is read.

    Args:
      file: a tar, or the `GzipReader` of one, whose bytes count as decompressed.
      offset: where to begin.
      wanted: the extensions whose contents are read; None for all.
    """
    files: list[_Member] = []
    count = 0
    for member in _members(file, offset, wanted):
        if files and (not member.key or (member.archive, member.key) != (files[0].archive, files[0].key)):
            yield _sample(files, member.offset)
            files = []
        count += 1
        if len(files) <= MOST_FILES:
            files.append(member)
        else:  # too many already: only what becomes of the rest is of use
            files[-1] = member
    if files:
        yield _sample(files, END)
    elif not count and not offset:
        yield Sample("", 0, END, {}, "the archive holds no files")


def _sample(members: list[_Member], end: int) -> Sample:
    damage = next((member.damage for member in members if member.damage), "")
    repeated = next((name for name, n in Counter(member.extension for member in members).items() if n > 1), None)
    if len(members) > MOST_FILES and not damage:
        damage = f"more than {MOST_FILES:,} files"
    elif repeated is not None and not damage:
        damage = f"several files named .{repeated:.60}"
    files = {} if damage else {member.extension: member.content for member in members}
    return Sample(members[0].key, members[0].offset, end, files, damage, members[-1].rest)


def _members(file: BinaryIO | GzipReader, offset: int, wanted: Container[str] | None) -> Iterator[_Member]:
    if offset >= END:
        return
    place = begin = offset
    sample, room = "", MOST_BYTES  # the key of the sample that is read, and what it may still hold
    given: dict[str, str] = {}  # what headers before a file's own say of it
    lost = False  # since a damaged header
    ended, archive = False, 0  # since an end marker; how many archives have ended
    blank = False  # the last block was empty
    try:
        size = END if isinstance(file, GzipReader) else file.seek(0, os.SEEK_END)  # END: not known yet
        file.seek(offset)
        while True:
            header = file.read(BLOCK)
            if len(header) < BLOCK:
                if not (ended and not any(header)) and not (lost and blank):
                    yield _Member("", "", begin, b"", "the archive ends without an end marker: it is cut off", "cut")
                return
            blank = not any(header)
            if blank and not lost:
                archive += not ended
                ended = True
                place = begin = place + BLOCK
                continue
            try:
                found = _checked(_plain_header(header) or _header(header), given)
            except tarfile.HeaderError:
                if not lost:
                    yield _Member("", "", begin, b"", "damaged header")
                lost, given = True, {}
                place = begin = place + BLOCK
                continue
            lost = ended = False
            name, length = found.name, found.size
            key, extension = _split(name)
            about = found.type in (_LONG_NAME, _PROPERTIES)  # the next file
            member = found.regular and bool(extension)
            last = place + BLOCK + length
            cut = last > size
            content, damage = b"", ""
            if member and key != sample:
                sample, room = key, MOST_BYTES
            if not cut and (about or (member and (wanted is None or extension in wanted))):
                if not about and length > room:
                    damage = f"{name:.200}: {length:,} bytes; at most {MOST_BYTES:,} are read of a sample"
                else:
                    content = file.read(length)
                    cut = len(content) < length
                    room -= 0 if about else length
            if cut or file.seek(last) < last:
                yield _Member(key, extension, begin, b"", f"{name:.200} is cut off by the end of the archive", "cut")
                return
            place += BLOCK + -(-length // BLOCK) * BLOCK
            if about:
                given |= {"path": _text(content)} if found.type == _LONG_NAME else _properties(content)
            elif found.type != _GLOBAL_PROPERTIES:
                if member:
                    yield _Member(key, extension, begin, content, damage, archive=archive)
                begin, given = place, {}
            file.seek(place)
    except zlib.error as error:
        yield _Member("", "", begin, b"", f"damaged gzip data: {error}", "unreadable")


def _checked(found: _Header, given: Mapping[str, str]) -> _Header:
    """The header with what others before it say. Raises tarfile.HeaderError for what no archive of files has."""
    about = found.type in (_LONG_NAME, _PROPERTIES)
    name, size = (
        (found.name, found.size) if about else (given.get("path", found.name), int(given.get("size", found.size)))
    )
    if size < 0 or len(name) > LONGEST_NAME or (about and size > LONGEST_ABOUT):
        raise tarfile.InvalidHeaderError("a size or name that no file has")
    return found._replace(name=name, size=size)


def _header(block: bytes) -> _Header:
    """Parses a header of any kind by `tarfile`. Raises tarfile.HeaderError if it is damaged."""
    info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    return _Header(info.name, info.size, info.type, info.isreg())


def _plain_header(block: bytes) -> _Header | None:
    """The same of a regular file in the usual form, in a tenth of the time; None for any other."""
    if block[156:157] != tarfile.REGTYPE or block[257:262] != b"ustar":
        return None
    size, checksum = block[124:136].rstrip(b"\0 "), block[148:156].rstrip(b"\0 ")
    if not (size.isdigit() and checksum.isdigit()) or block[345]:
        return None
    try:
        name, size, checksum = block[:100].partition(b"\0")[0].decode(), int(size, 8), int(checksum, 8)
    except ValueError:
        return None
    if sum(block) - sum(block[148:156]) + 8 * 32 != checksum:  # the sum takes its own field for spaces
        return None
    return _Header(name, size, tarfile.REGTYPE, True)


def _split(name: str) -> tuple[str, str]:
    """Returns (key, extension) of a file's name; no extension if it has none or is passed over."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    passed = any(part not in (".", "..") and rule_of(part) for part in name.split("/"))
    return folder + slash + stem, "" if passed else extension.lower()


def _properties(text: bytes) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n" of a POSIX header, as far as they matter here."""
    found, place = {}, 0
    while place < len(text):
        space = text.find(b" ", place, place + LONGEST_NUMBER)
        length = text[place:space]
        if space < 0 or not length.isdigit() or not space - place < int(length) <= len(text) - place:
            break
        key, _, value = text[space + 1 : place + int(length) - 1].partition(b"=")
        if key == b"path" or (key == b"size" and value.isdigit() and len(value) < LONGEST_NUMBER):
            found[_text(key)] = _text(value)
        place += int(length)
    return found


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "surrogateescape")

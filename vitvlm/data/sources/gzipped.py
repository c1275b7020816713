"""Gzip files read forward from any byte of what they hold, starting at the nearest point that was passed before."""

import collections
import zlib
from typing import BinaryIO, NamedTuple

_MAGIC = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ", "zstd": b"\x28\xb5\x2f\xfd"}
_GZIP = 31  # zlib's window bits for gzip data, whose checksum it compares at the end
_PIECE = 2**16  # bytes read at a time
_MOST = 2**20  # bytes decompressed at a time
_SPACING = 4 * 2**20  # bytes between the points that are kept
_LATEST = 16
_FREE = 256 * 2**20  # bytes of contents that are read however few they were compressed to
_RATIO = 200  # of contents to compressed bytes, beyond; images hardly compress, texts some tenfold


class Point(NamedTuple):
    """A place at which decompression can start: of its contents, of the file, and zlib's state there (some 40 kB).

    What was read of the file and not yet decompressed is in the state.
    """

    place: int
    compressed: int
    state: "zlib._Decompress"


_FIRST = Point(0, 0, zlib.decompressobj(_GZIP))


class Points:
    """Points at which reading of one gzip file can start: its first byte, and places that readers have passed.

    One point for every 4 MiB of contents is kept, which takes about 1 % of their size in memory, and so are the latest
    few. Contents read in order are decompressed once; any other place that a reader has passed is reached by
    decompressing at most 4 MiB before it.
    """

    def __init__(self) -> None:
        self._kept = [_FIRST]
        self._latest: collections.deque[Point] = collections.deque(maxlen=_LATEST)

    def add(self, point: Point) -> None:
        """Remembers a state, which must not be used any more."""
        self._latest.append(point)
        if point.place - self._kept[-1].place >= _SPACING:
            self._kept.append(point)

    def before(self, place: int) -> Point:
        """Returns the last point at or before `place`."""
        return max((point for point in (*self._kept, *self._latest) if point.place <= place), key=lambda p: p.place)


class GzipReader:
    """The contents of a gzip file, also of several one after the other, as a binary file that is read forward.

    Without `points`, seeking backward starts again at the first byte. Every method raises zlib.error where the
    compressed data is damaged or cut off.
    """

    def __init__(self, file: BinaryIO, points: Points | None = None):
        self._file, self._points = file, points
        self._start(_FIRST)

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        parts = []
        while size > 0 and (self._used < len(self._ahead) or self._fill()):
            part = self._ahead[self._used : self._used + size]
            self._used += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def seek(self, place: int) -> int:
        """Goes to a byte of the contents, or to their end if that comes before it; returns where it is now."""
        end = self._place + len(self._ahead)
        if not self._place <= place <= end:
            point = self._points.before(place) if self._points else _FIRST
            if place < self._place or point.place > end:
                self._start(point)
        while self._place + len(self._ahead) < place:
            if not self._fill():
                return self.tell()
        self._used = place - self._place
        return place

    def tell(self) -> int:
        return self._place + self._used

    def _start(self, point: Point) -> None:
        self._file.seek(point.compressed)
        self._decompress = point.state.copy()
        self._place = point.place  # of the first byte of `_ahead`
        self._ahead, self._used = b"", 0

    def _fill(self) -> bool:
        """Decompresses the next piece; False at the end of the contents."""
        self._place += len(self._ahead)
        self._ahead, self._used = b"", 0
        while not self._ahead:
            compressed = self._decompress.unconsumed_tail
            if self._decompress.eof:
                compressed = self._next_member()
                if not compressed:
                    return False
                self._decompress = zlib.decompressobj(_GZIP)
            elif self._points is not None:
                self._points.add(Point(self._place, self._file.tell(), self._decompress.copy()))
            compressed = compressed or self._file.read(_PIECE)
            self._ahead = self._decompress.decompress(compressed, _MOST)
            if not (compressed or self._ahead or self._decompress.eof):
                raise zlib.error("it is cut off")
            if self._place > max(_FREE, _RATIO * self._file.tell()):
                raise zlib.error(f"it expands more than {_RATIO}-fold, as no set of images does")
        return True

    def _next_member(self) -> bytes:
        """The first bytes of the gzip data that follows the end of another, after zeros; b"" if none does."""
        compressed = self._decompress.unused_data
        while not compressed.lstrip(b"\0"):
            compressed = self._file.read(_PIECE)
            if not compressed:
                return b""
        return compressed.lstrip(b"\0")


def compression(file: BinaryIO) -> str | None:
    """Names the compression of a file by its first bytes, None for a tar or no known one; rewinds the file."""
    start = file.read(262)
    file.seek(0)
    if start.endswith(b"ustar"):  # a tar, whatever the name it begins with
        return None
    return next((name for name, magic in _MAGIC.items() if start.startswith(magic)), None)

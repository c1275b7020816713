"""Images without labels, as a user names them: files, folders, patterns, lists and tars; or pictures in memory."""

import dataclasses
import glob
import io
import os
import stat
import tarfile
import threading
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from vitvlm.core.config import ConfigError
from vitvlm.data.accounting import Files, Tally, tallies
from vitvlm.data.errors import UnreadableImage
from vitvlm.data.names import readable
from vitvlm.data.operations.decoding import pixels_of
from vitvlm.data.sources import directories
from vitvlm.data.sources.base import Example, Source
from vitvlm.data.survey import is_image, rule_of, survey

LISTS = (".txt", ".list", ".lst")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
STDIN = "-"
_DAMAGE = (tarfile.TarError, zlib.error, EOFError, OSError)


@dataclasses.dataclass(frozen=True)
class _File:
    """A file of its own."""

    path: Path

    def read(self, name: str) -> bytes:
        return directories.read(self.path, name)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Bytes of a tar that is not compressed."""

    path: Path
    offset: int
    size: int

    def read(self, name: str) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error), name) from error
        if len(content) < self.size:
            raise UnreadableImage(f"{self.path} ends before it: the archive is cut off", name)
        return content


class _Compressed:
    """A compressed tar, which stays open: its members are best read in their order."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._opened: tarfile.TarFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])

    def read(self, member: tarfile.TarInfo, name: str) -> bytes:
        with self._lock:
            try:
                self._opened = self._opened or tarfile.open(self.path)  # noqa: SIM115 (it stays open)
                return self._opened.extractfile(member).read()
            except _DAMAGE as error:
                raise UnreadableImage(f"{self.path}: {error or type(error).__name__}", name) from error


@dataclasses.dataclass(frozen=True)
class _Member:
    """A member of a compressed tar."""

    archive: _Compressed
    member: tarfile.TarInfo

    def read(self, name: str) -> bytes:
        return self.archive.read(self.member, name)


class Unlabelled(Source):
    """Base of sources of images alone, each with an id and nothing else."""

    label_names = ()

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        return np.zeros(len(self.ids), np.int32)

    def __len__(self) -> int:
        return len(self.ids)


class Pictures(Unlabelled):
    """The images that places name, in their order, each once: what `vitvlm.load(path).predict("folder")` reads.

    A place is a file; a folder, of which all images at any depth are meant; a pattern such as "photos/**/*.png"; a
    list, a `.txt` of one path a line, from the list's own folder; a tar, compressed or not; or "-", a list from the
    standard input. An image's id is its path as it was given, `tar/member` in a tar, with control characters written
    as in Python: one line.

    Args:
      places: what to read.
      stdin: the lines of the standard input.

    Raises ConfigError for a place that is not there, and where no place holds an image. A file of a list that is not
    there is an image that cannot be read.
    """

    def __init__(self, places: Sequence[str | os.PathLike], stdin: Iterable[str] = ()):
        self.name = ", ".join(readable(place) for place in places)
        self._found: dict[str, _File | _Part | _Member] = {}
        self._files: list[Files] = []
        for place in places:
            self._add(os.fspath(place), stdin)
        self._ids = tuple(self._found)
        self._reads = tuple(self._found.values())
        if not self._ids:
            raise ConfigError(f"images: no image in {self.name or 'no place'}")

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    @property
    def files(self) -> tuple[Files, ...]:
        return tuple(self._files)

    def __getitem__(self, index: int) -> Example:
        name = self._ids[index]
        return {"image": self._reads[index].read(name), "id": name}

    def _add(self, place: str, stdin: Iterable[str]) -> None:
        path = Path(place).expanduser()
        if place == STDIN:
            self._listed(stdin, Path())
        elif path.is_dir():
            self._folder(path)
        elif path.exists():
            self._file(path)
        elif glob.has_magic(place):
            found = sorted(glob.glob(os.fspath(path), recursive=True), key=os.fsencode)
            if not found:
                raise ConfigError(f"images: nothing matches the pattern {place}")
            for each in map(Path, found):
                if each.is_file():
                    self._put(each)
        else:
            raise ConfigError(f"images: {readable(place)}: no such file or folder")

    def _file(self, path: Path) -> None:
        if path.suffix.lower() in LISTS:
            try:
                lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            except OSError as error:
                raise ConfigError(f"images: {path}: cannot be read: {error.strerror}") from None
            self._listed(lines, path.parent)
        elif path.name.lower().endswith(TARS):
            self._tar(path)
        else:
            self._put(path)

    def _listed(self, lines: Iterable[str], folder: Path) -> None:
        """Adds the paths of a list, which may be relative to `folder`."""
        for line in lines:
            if line := line.rstrip("\r\n"):
                path = Path(line).expanduser()
                self._put(path if path.is_absolute() else folder / path)

    def _put(self, path: Path) -> None:
        self._found.setdefault(one_line(path), _File(path))

    def _folder(self, root: Path) -> None:
        found = survey(root)
        for name in found.images:
            self._put(root / name)
        unreadable = {readable(name): reason for name, reason in found.unreadable.items()}
        count = len(found.images)
        account = Files(one_line(root), count, count - len(unreadable), found.skipped, unreadable, found.notes)
        self._files.append(account)

    def _tar(self, path: Path) -> None:
        skipped, notes, count, where = tallies(), tallies(), 0, one_line(path)
        try:
            with tarfile.open(path) as archive:
                compressed = None if _is_plain(path) else _Compressed(path)
                for member in _members(archive, notes):
                    name = f"{where}/{one_line(member.name)}"
                    if rule := _left_out(member):
                        skipped[rule].add(one_line(member.name))
                    elif name in self._found:
                        notes["images of a name that is there twice: the first is taken"].add(name)
                    else:
                        plain = compressed is None
                        self._found[name] = (
                            _Part(path, member.offset_data, member.size) if plain else _Member(compressed, member)
                        )
                        count += 1
                if compressed is None and (rest := _unread(path, archive.offset)):
                    notes["places of damage, behind which nothing is read"].add(f"byte {rest}")
        except _DAMAGE as error:
            raise ConfigError(f"images: {where}: is no tar that can be read: {error}") from None
        self._files.append(Files(where, count, count, skipped, {}, notes))


class InMemory(Unlabelled):
    """Pictures that are in memory already: Pillow images, or arrays of uint8 [H, W, C] or [H, W].

    Raises ConfigError for anything else, which says which and what to do.
    """

    def __init__(self, pictures: Sequence[Image.Image | np.ndarray]):
        self.name = "pictures in memory"
        self._pictures = [_as_pixels(picture, f"image {i}") for i, picture in enumerate(pictures)]
        if not self._pictures:
            raise ConfigError("images: none are given")

    @property
    def ids(self) -> Sequence[str]:
        return tuple(f"image {i}" for i in range(len(self._pictures)))

    def __getitem__(self, index: int) -> Example:
        return {"image": self._pictures[index], "id": f"image {index}"}


def given(images: Any) -> Unlabelled:
    """The source of what a user hands over: one place or picture, several of a kind, or an array [B, H, W, C].

    Raises ConfigError for what is neither, and for places and pictures together.
    """
    if isinstance(images, str | os.PathLike):
        return Pictures([images])
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        return InMemory([images])
    several = list(images)
    places = [isinstance(each, str | os.PathLike) for each in several]
    if several and all(places):
        return Pictures(several)
    if any(places):
        raise ConfigError("images: paths and pictures together: give the paths alone, or the pictures")
    return InMemory(several)


def one_line(name: str | os.PathLike) -> str:
    """A file's name as text on one line, its control characters as in Python's strings."""
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter
        for letter in readable(name)
    )


def _as_pixels(picture: Any, where: str) -> np.ndarray:
    if isinstance(picture, Image.Image):
        return pixels_of(picture)
    if not isinstance(picture, np.ndarray):
        raise ConfigError(
            f"{where}: {type(picture).__name__}: give a path, a Pillow image or an array of uint8 [H, W, C]"
        )
    if picture.dtype != np.uint8:
        raise ConfigError(
            f"{where}: an array of {picture.dtype}: give uint8 pixels, 0 to 255, before any normalisation"
        )
    pixels = picture[..., None] if picture.ndim == 2 else picture
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        raise ConfigError(
            f"{where}: an array of shape {picture.shape}: give [H, W, C] with 1, 3 or 4 channels, or [H, W]"
        )
    return pixels


def _members(archive: tarfile.TarFile, notes: dict[str, Tally]) -> Iterator[tarfile.TarInfo]:
    """The members up to the archive's end, or to its first damage, which is noted."""
    try:
        yield from archive
    except _DAMAGE as error:
        notes["places of damage, behind which nothing is read"].add(str(error) or type(error).__name__)


def _left_out(member: tarfile.TarInfo) -> str:
    """The rule that leaves out a member of a tar; "" for an image."""
    if member.isdir():
        return "directories"
    if rule := next((rule for part in member.name.split("/") if part != "." and (rule := rule_of(part))), ""):
        return rule
    if not member.isreg() or member.issparse():
        return "neither a file nor a directory"
    suffix = os.path.splitext(member.name)[1].lower()
    return "" if is_image(member.name) else f"{one_line(suffix)} files" if suffix else "files without a suffix"


def _is_plain(path: Path) -> bool:
    """Tells whether a tar is not compressed, whatever its name says."""
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False


def _unread(path: Path, end: int) -> int:
    """The byte from which on a tar has more than empty blocks behind its last member; 0 for none."""
    if not stat.S_ISREG(path.stat().st_mode):
        return 0
    with path.open("rb") as file:
        file.seek(end)
        while block := file.read(io.DEFAULT_BUFFER_SIZE):
            if block.strip(b"\0"):
                return end
    return 0

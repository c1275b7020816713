"""Every file below a folder: the images, and what else there is, counted by the rule that leaves it out.

Links are followed, each file and each directory once, by its device and inode: what is there itself comes before links
to it. So a link back to an ancestor ends, and an image that is linked to from two places, by links of either kind, is
one image.
"""

import collections
import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path

from vitvlm.data.accounting import Tally, tallies
from vitvlm.data.names import readable

SUFFIXES = frozenset((".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))

# What operating systems, archivers and network drives leave behind, besides names that begin with a dot.
LEFTOVERS = frozenset(
    (
        *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    )
)

HIDDEN = "hidden (the name of the file or of its directory begins with a dot)"
LEFTOVER = "left by other programs (__MACOSX, @eaDir, Thumbs.db and the like)"
REPEATED = "links to a file or directory that is counted already"
CYCLE = "links back to a directory that they lie in"
SPECIAL = "neither a file nor a directory"

_HINTS = {suffix: ", convert them to JPEG or PNG" for suffix in (".heic", ".heif", ".avif", ".jxl", ".jp2")}


@dataclasses.dataclass
class Survey:
    """Files and directories below a folder.

    Attributes:
      images: their paths from the folder, in order, with "/"; as the file system gives them, for opening.
      directories: all that no rule leaves out, in order, with nothing for `root` itself.
      skipped: files that are not data, by the rule that says so.
      unreadable: images that cannot be read, by path, with the reason: empty, a broken link, no permission.
      repeated: what files are known by besides their path in `images`, through links of both kinds, with that path.
      notes: facts that change nothing, but may be of interest.
    """

    images: list[str] = dataclasses.field(default_factory=list)
    directories: list[str] = dataclasses.field(default_factory=list)
    skipped: dict[str, Tally] = dataclasses.field(default_factory=tallies)
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    repeated: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: dict[str, Tally] = dataclasses.field(default_factory=tallies)

    def prefer(self, inside: Callable[[str], bool]) -> None:
        """Takes a file by a path that is `inside`, a split, where it is known by such a path and by another."""
        taken: dict[str, str] = {}
        for path, known in self.repeated.items():
            if inside(path) and not inside(known):
                taken.setdefault(known, path)
        self.images = sorted((taken.get(path, path) for path in self.images), key=os.fsencode)
        self.unreadable = {taken.get(path, path): reason for path, reason in self.unreadable.items()}
        names = {readable(path): readable(known) for known, path in taken.items()}
        self.skipped[REPEATED].names = [names.get(name, name) for name in self.skipped[REPEATED].names]


def survey(root: Path) -> Survey:
    """Goes through all that is below `root`, following links."""
    return _Walk(root).found


def is_image(name: str) -> bool:
    """Tells by its suffix whether a file is an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


class _Walk:
    """One pass: first what is there itself, then what links lead to."""

    def __init__(self, root: Path):
        self.found = Survey()
        self._root = os.fspath(root)
        self._seen: set[tuple[int, int]] = set()  # directories
        self._paths: dict[tuple[int, int], str] = {}  # of images by inode, as far as several paths may lead to them
        self._linked = False  # whether links may lead to any
        self._links: list[str] = []
        self._directory("", "")
        if self._links:
            self._paths = {_inode(os.stat(self._full(path))): path for path in self.found.images}
            self._linked = True
        while self._links:
            links, self._links = self._links, []
            for path in links:
                self._link(path)
        self.found.images.sort(key=os.fsencode)
        self.found.directories.sort(key=os.fsencode)

    def _directory(self, path: str, rule: str) -> None:
        """A directory with all below it; `rule` leaves all of it out, if there is one."""
        try:
            place = _inode(os.stat(self._full(path)))
            if place in self._seen:
                self.found.skipped[REPEATED].add(readable(path))
                return
            with os.scandir(self._full(path)) as listed:
                entries = sorted(listed, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            self.found.notes["directories that cannot be opened"].add(f"{readable(path)}: {error.strerror}")
            return
        if not rule:
            self._seen.add(place)
            self.found.directories += [path] * bool(path)
        inner, stems = [], collections.defaultdict(list)
        for entry in entries:
            name = f"{path}/{entry.name}" if path else entry.name
            ours = rule or rule_of(entry.name)
            if entry.is_symlink() and ours:
                self.found.skipped[ours].add(readable(name))
            elif entry.is_symlink():
                self._links.append(name)
            elif entry.is_dir(follow_symlinks=False):
                if not ours and is_image(entry.name):
                    self.found.notes["directories with the name of an image"].add(readable(name))
                inner.append((name, ours))
            elif self._file(name, ours, entry.stat(follow_symlinks=False)):
                stems[os.path.splitext(entry.name)[0].casefold()].append(name)
        for names in stems.values():
            if len(names) > 1:
                same = " and ".join(readable(name) for name in names)
                self.found.notes["images called the same but for case or suffix"].add(same)
        for name, ours in inner:
            self._directory(name, ours)

    def _file(self, path: str, rule: str, about: os.stat_result) -> bool:
        """Counts one file, and tells whether it is an image of the set."""
        rule = rule or ("" if stat.S_ISREG(about.st_mode) else SPECIAL) or _suffix_rule(path)
        if not rule and (self._linked or about.st_nlink > 1):
            known = self._paths.setdefault(_inode(about), path)
            if known != path:
                self.found.repeated[path] = known
                rule = REPEATED
        if rule:
            self.found.skipped[rule].add(readable(path))
            return False
        self.found.images.append(path)
        if about.st_size == 0:
            self.found.unreadable[path] = "empty file"
        elif not about.st_mode & stat.S_IROTH and not os.access(self._full(path), os.R_OK):
            self.found.unreadable[path] = "no permission to read it"
        return True

    def _link(self, path: str) -> None:
        """Counts the target of a link; a broken link with the name of an image is an image that cannot be read."""
        try:
            about = os.stat(self._full(path))
        except OSError as error:
            if rule := _suffix_rule(path):
                self.found.skipped[rule].add(readable(path))
            else:
                broken = isinstance(error, FileNotFoundError)
                self.found.images.append(path)
                self.found.unreadable[path] = "a broken link" if broken else f"a link: {error.strerror}"
            return
        if not stat.S_ISDIR(about.st_mode):
            self._file(path, "", about)
        elif self._leads_up(path):
            self.found.skipped[CYCLE].add(readable(path))
        else:
            self._directory(path, "")

    def _leads_up(self, path: str) -> bool:
        target = os.path.realpath(self._full(path))
        return os.path.commonpath([target, os.path.realpath(os.path.dirname(self._full(path)))]) == target

    def _full(self, path: str) -> str:
        return os.path.join(self._root, path) if path else self._root


def _inode(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


def rule_of(name: str) -> str:
    """Returns the rule that leaves out a file or directory of that name with all its content; "" for none."""
    if name.startswith("."):
        return HIDDEN
    return LEFTOVER if name.lower() in LEFTOVERS else ""


def _suffix_rule(path: str) -> str:
    suffix = os.path.splitext(path)[1].lower()
    if suffix in SUFFIXES:
        return ""
    return f"{readable(suffix)} files{_HINTS.get(suffix, '')}" if suffix else "files without a suffix"

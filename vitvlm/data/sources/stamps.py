"""Tux Paint's stamps: captioned cut-outs, read where Debian's `tuxpaint-stamps-default` has installed them.

They are under the GPL, so no copy of them travels with this package. A stamp is a PNG and a text file beside it, whose
first line is an English sentence and whose others are translations (`ja.utf8=…`); its transparency is an exact mask
(`decode(4)` keeps it). The category, the first directory of its path, is the label.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import splits, stat_data
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.sources.base import Example, Source

DEBIAN_STAMPS = Path("/usr/share/tuxpaint/stamps")
TRAIN_SHARE = 0.8
PARTS = {"train": (0, TRAIN_SHARE), "test": (TRAIN_SHARE, 1), "all": (0, 1)}

# What tells a photograph from a drawing by its path and its PNG header alone.
DRAWN_CATEGORIES = ("symbols",)
DRAWN_FOLDERS = ("cartoon", "flags", "roadsigns", "clipart")
RGBA = (8, 6)  # bits per channel, colour type
SMALLEST = 32  # pixels; below, things are icons
BYTES_PER_PIXEL = 0.5  # flat colours compress to less

FEWEST = 5  # examples of a category that is a class
_TRANSLATION = re.compile(r"([A-Za-z]+(?:[_@][A-Za-z]+)?)\.utf8=(.+)")  # pt_BR.utf8=Um pássaro.


def open_stamps(options: str, split: str) -> Source:
    """The stamps that Debian installed: all, the "photos" among them, or those with texts in some languages too."""
    given = [option for option in options.split(",") if option]
    languages = tuple(option for option in given if option != "photos")
    return StampsSource(DEBIAN_STAMPS, split, photos="photos" in given, languages=languages)


class StampsSource(Source):
    """The stamps below `folder`, or only the photographs among them, or those with a text in each of some languages.

    "train" is a fixed stratified four fifths, "test" the rest, "all" everything, in the order of a stratified shuffle.
    Categories of fewer than FEWEST examples are left out. An example holds "caption", the English sentence, and, in
    any other language, "caption_ja", "caption_pt_BR" and so on.

    Raises:
      DataError: if there is no such folder, or no stamp in it.
      ConfigError: for another split, or a language that no stamp has.
    """

    has_quick_texts = True

    def __init__(self, folder: Path, split: str, photos: bool = False, languages: Sequence[str] = ()):
        if split not in PARTS:
            raise ConfigError(f"stamps: no split {split!r}; {suggest(split, PARTS)}")
        if not folder.is_dir():
            raise DataError(f"stamps: no directory {folder}; install Debian's package tuxpaint-stamps-default")
        self._folder = folder
        files = [path for path in sorted(folder.rglob("*.png")) if path.with_suffix(".txt").is_file()]
        files = [path.relative_to(folder) for path in files if "_mirror" not in path.stem]
        if photos:
            files = [path for path in files if _is_photo(folder, path)]
        if languages:
            files = _told_in(folder, files, languages)
        categories = [path.parts[0] for path in files]
        self.label_names = tuple(name for name in sorted(set(categories)) if categories.count(name) >= FEWEST)
        if not self.label_names:
            raise DataError(f"stamps: {folder} holds no category of {FEWEST} images (NAME.png beside NAME.txt)")
        kept = [path for path in files if path.parts[0] in self.label_names]
        ids = [path.as_posix() for path in kept]
        labels = np.array([self.label_names.index(path.parts[0]) for path in kept], np.int32)
        order = splits.stratified_order(ids, labels, seed=0)
        begin, end = (round(share * len(order)) for share in PARTS[split])
        self._ids = [ids[i] for i in order[begin:end]]
        self._labels = labels[order[begin:end]]

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        return self._labels

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    def text(self, index: int, name: str) -> str | None:
        try:
            return captions(self._folder / self._ids[index]).get(name)
        except OSError:  # shows when the example is read
            return None

    def stamps(self) -> Mapping[str, str]:
        return stat_data.described({name: self._folder / name for name in self._ids})

    def __getitem__(self, index: int) -> Example:
        name = self._ids[index]
        path = self._folder / name
        try:
            image, texts = path.read_bytes(), captions(path)
        except OSError as error:
            raise UnreadableImage(error.strerror, name) from error
        return {"image": image, "label": int(self._labels[index]), "id": name, **texts}


def captions(path: Path) -> dict[str, str]:
    """Reads the captions of a stamp by field: "caption" in English, "caption_de" and so on in other languages.

    Raises OSError if its text file cannot be read.
    """
    english, _, others = path.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").partition("\n")
    texts = {"caption": english.strip()}
    for line in others.splitlines():
        if (found := _TRANSLATION.fullmatch(line.strip())) and found[2].strip():
            texts[f"caption_{found[1]}"] = found[2].strip()
    return texts


def _told_in(folder: Path, files: Sequence[Path], languages: Sequence[str]) -> list[Path]:
    """The stamps with a text in each of the languages."""
    fields = {path: captions(folder / path).keys() for path in files}
    known = {field.removeprefix("caption_") for names in fields.values() for field in names if field != "caption"}
    for language in languages:
        if language not in known:
            raise ConfigError(f"data source 'stamps:{language}': {suggest(language, known | {'photos'})}")
    wanted = {f"caption_{language}" for language in languages}
    return [path for path in files if wanted <= fields[path]]


def _is_photo(folder: Path, path: Path) -> bool:
    """Tells whether a stamp is a photographic cut-out: many colours (they do not compress), and transparency."""
    if path.parts[0] in DRAWN_CATEGORIES or any(part in DRAWN_FOLDERS for part in path.parts):
        return False
    with (folder / path).open("rb") as file:
        header = file.read(26)
    if len(header) < 26:
        return False
    width, height, *kind = struct.unpack(">IIBB", header[16:])
    size = (folder / path).stat().st_size
    return tuple(kind) == RGBA and min(width, height) >= SMALLEST and size >= BYTES_PER_PIXEL * width * height

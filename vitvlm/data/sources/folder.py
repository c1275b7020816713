"""Image folders: one directory per class, with no preparation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import splits
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.sources.base import Example, Source

SPLIT_NAMES = ("train", "test", "val", "validation")
TRAIN_SHARE = 0.8  # of a folder that is not split
SUFFIXES = frozenset((".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


class FolderSource(Source):
    """The images below PATH/SPLIT/CLASS/, or below PATH/CLASS/ if the folder is not split.

    Of a folder that is not split, "all" is all of it, "train" four fifths of each class, and "test" (or "val") the
    rest. The order is a fixed stratified shuffle of the file names, so that any slices, such as "all[:90%]" and
    "all[90%:]", hold the classes in the same proportions. Files with other suffixes and hidden files are ignored.

    Raises:
      DataError: if there is no such folder, no class in it, or a class without any image.
      ConfigError: if the folder has no such split.
    """

    def __init__(self, path: str, split: str):
        root = Path(path).expanduser()
        if not root.is_dir():
            raise DataError(f"folder:{path}: no such directory; give one that holds a directory per class")
        self._root, (begin, end) = _split_directory(root, split)
        classes = _directories(self._root)
        if not classes:
            raise DataError(f"{self._root}: no class directories; images belong in one directory per class")
        files, labels = [], []
        for label, name in enumerate(classes):
            images = sorted(p for p in (self._root / name).rglob("*") if _is_image(p))
            if not images:
                raise DataError(f"{self._root / name}: no images in this class; add some, or remove the directory")
            files += [p.relative_to(self._root).as_posix() for p in images]
            labels += [label] * len(images)
        order = splits.stratified_order(files, np.array(labels), seed=0)
        order = order[round(begin * len(order)) : round(end * len(order))]
        self.label_names = tuple(classes)
        self._files = [files[i] for i in order]
        self._labels = np.array(labels, np.int32)[order]

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        return self._labels

    @property
    def ids(self) -> Sequence[str]:
        return self._files

    def __getitem__(self, index: int) -> Example:
        name = self._files[index]
        try:
            content = (self._root / name).read_bytes()
        except OSError as error:
            raise UnreadableImage(error.strerror, name) from error
        return {"image": content, "label": int(self._labels[index]), "id": name}


def _split_directory(root: Path, split: str) -> tuple[Path, tuple[float, float]]:
    """Where a split's class directories are, and from which to which share of their images it goes."""
    found = [name for name in _directories(root) if name in SPLIT_NAMES]
    if split in found:
        return root / split, (0, 1)
    if found:
        raise ConfigError(f"folder {root}: no split {split!r}; {suggest(split, found)}")
    parts = {"all": (0, 1), **dict.fromkeys(SPLIT_NAMES, (TRAIN_SHARE, 1)), "train": (0, TRAIN_SHARE)}
    if split not in parts:
        raise ConfigError(f"folder {root}: no split {split!r}; {suggest(split, parts)}")
    return root, parts[split]


def _directories(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()

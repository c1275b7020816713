"""Layouts of image folders: which directories are splits, which are classes, and which are in doubt."""

import collections
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data.errors import DataError
from vitvlm.data.names import readable
from vitvlm.data.survey import Survey

TRAIN_SHARE = 0.8  # of a folder that is not split
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names of directories, in any case, that hold a split; any of a line asks for the one that is there."""

EXPECTED = "expected PATH/CLASS/… or PATH/SPLIT/CLASS/…, SPLIT one of " + ", ".join(
    name for names in SPLITS.values() for name in names
)
BESIDE_CLASSES = "images beside the class directories"
BESIDE_SPLITS = "images in places that are no split"

_KIND = {name: kind for kind, names in SPLITS.items() for name in names}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A split of a folder.

    Attributes:
      base: where the class directories are, from the folder: "" or "train/".
      images: paths of the images from there.
      classes: the names of the directories, as the file system gives them; none if the images lie in no directory.
      labels: the class of each image.
      share: from which to which share of `images`, in a stratified order, the split goes.
      skipped: images of no split or no class, from the folder, by rule.
      doubt: why the directories can hardly be what one means by classes; "" if they can.
    """

    base: str
    images: Sequence[str]
    classes: Sequence[str]
    labels: Sequence[int]
    share: tuple[float, float]
    skipped: Mapping[str, Sequence[str]]
    doubt: str


def recognise(root: Path, found: Survey, split: str) -> Layout:
    """The layout of a folder, and in it one split.

    A folder is split if directories have the names of splits (SPLITS). A single such directory beside others, with
    images and no directories in it, is a class that happens to be called so, like "train" beside "bus" and "car".

    Raises:
      DataError: if the folder could be meant in two ways, or holds no image, or a class without any.
      ConfigError: if the folder has no such split.
    """
    tree = _Tree(found)
    if not found.images:
        raise DataError(f"{readable(root)}: no images{_contents(root, '', tree)}; {EXPECTED}")
    named = _named_splits(root, tree)
    kind = _KIND.get(split.lower())
    if not named:
        if kind is None and split != "all":
            raise ConfigError(f"folder {readable(root)}: no split {split!r}; {suggest(split, (*_KIND, 'all'))}")
        share = (0.0, 1.0) if kind is None else (0.0, TRAIN_SHARE) if kind == "train" else (TRAIN_SHARE, 1.0)
        return _in_classes(root, "", found.images, tree, share, {})
    if kind not in named:
        there = [readable(name) for name in named.values()]
        raise ConfigError(f"folder {readable(root)}: no split {split!r}; {suggest(split, there)}")
    if found.repeated:  # splits that link to a directory of all images
        found.prefer(lambda path: "/" in path and path.partition("/")[0] in named.values())
        tree = _Tree(found)
    base = f"{named[kind]}/"
    images = [path[len(base) :] for path in found.images if path.startswith(base)]
    outside = [path for path in found.images if path.partition("/")[0] not in named.values() or "/" not in path]
    return _in_classes(root, base, images, tree, (0.0, 1.0), {BESIDE_SPLITS: outside} if outside else {})


class _Tree:
    """The directories of a survey: `inner` those in each, `direct` and `below` how many images, by path.

    `repeated` is the survey's.
    """

    def __init__(self, found: Survey):
        self.repeated = found.repeated
        self.inner: dict[str, list[str]] = collections.defaultdict(list)
        for path in found.directories:
            parent, _, name = path.rpartition("/")
            self.inner[parent].append(name)
        self.direct = collections.Counter(path.rpartition("/")[0] for path in found.images)
        self.below: collections.Counter[str] = collections.Counter()
        for path, count in self.direct.items():
            self.below[path] += count
            while path:
                path = path.rpartition("/")[0]
                self.below[path] += count


def _named_splits(root: Path, tree: _Tree) -> dict[str, str]:
    """Directories that are splits, by kind."""
    named = collections.defaultdict(list)
    for name in tree.inner[""]:
        if (kind := _KIND.get(name.lower())) is not None:
            named[kind].append(name)
    for kind, names in named.items():
        if len(names) > 1:
            raise DataError(
                f"folder {readable(root)}: {' and '.join(map(readable, names))} could both be the split {kind!r}; "
                "rename or remove one"
            )
    splits = {kind: names[0] for kind, names in named.items()}
    others = [name for name in tree.inner[""] if name not in splits.values() and tree.below[name]]
    flat = [name for name in splits.values() if tree.direct[name] and tree.direct[name] == tree.below[name]]
    if not others or not flat:
        return splits
    if len(splits) == 1:
        return {}
    raise DataError(
        f"folder {readable(root)}: {_listed(flat)} hold images and no directories, beside {_listed(others)}: they "
        f"could be splits without classes, or classes; {EXPECTED}"
    )


def _in_classes(
    root: Path,
    base: str,
    images: Sequence[str],
    tree: _Tree,
    share: tuple[float, float],
    skipped: dict[str, Sequence[str]],
) -> Layout:
    """The layout of `images`, which are below `base`."""
    where = root / base
    if not images:
        raise DataError(f"{readable(where)}: no images{_contents(root, base, tree)}; {EXPECTED}")
    classes = tree.inner[base.rstrip("/")]
    beside = [base + path for path in images if "/" not in path]
    inside = [path for path in images if "/" in path]
    if not inside:
        return Layout(base, images, (), [0] * len(images), share, skipped, "")
    if len(beside) > len(inside):
        raise DataError(
            f"{readable(where)}: {len(beside):,} images lie beside the directories {_listed(classes)}, and "
            f"{len(inside):,} in them; {EXPECTED}"
        )
    if beside:
        skipped = skipped | {BESIDE_CLASSES: beside}
    for name in classes:
        if not tree.below[base + name]:
            held = _contents(root, base + name, tree)
            raise DataError(
                f"{readable(where / name)}: no images in this class{held}; add some, or remove the directory"
            )
    places = {name: label for label, name in enumerate(classes)}
    labels = [places[path.partition("/")[0]] for path in inside]
    return Layout(base, inside, classes, labels, share, skipped, _doubt(where, base, classes, tree))


def _doubt(where: Path, base: str, classes: Sequence[str], tree: _Tree) -> str:
    """Says why the directories are hardly classes: one holds directories instead of images. Empty without doubt."""
    for name in classes:
        inner = [each for each in tree.inner[base + name] if tree.below[f"{base}{name}/{each}"]]
        if not tree.direct[base + name] and len(inner) > 1:
            return (
                f"{readable(where / name)} holds no images but directories ({_listed(inner)}): if these are the "
                f"classes, give folder:{readable(where / name)}; {EXPECTED}"
            )
    return ""


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(readable, names[:5]))
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _contents(root: Path, base: str, tree: _Tree) -> str:
    """Describes the content of a directory without images: " (it holds 12 .heic, 3 .txt)"."""
    for path, known in tree.repeated.items():
        if path.startswith(base.rstrip("/") + "/"):
            return f" ({readable(path)} is {readable(known)} by another name)"
    names = [name for _, _, files in os.walk(root / base) for name in files]
    counts = collections.Counter(readable(os.path.splitext(name)[1].lower()) or "without a suffix" for name in names)
    held = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(5))
    return f" (it holds {held})" if held else ""

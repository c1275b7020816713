"""Image folders: one directory per class, with no preparation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from vitvlm.core.classes import composed
from vitvlm.data import splits, stat_data
from vitvlm.data.accounting import Files, Tally
from vitvlm.data.errors import DataError
from vitvlm.data.names import readable
from vitvlm.data.sources import directories, layouts
from vitvlm.data.sources.base import Example, Source
from vitvlm.data.survey import survey


class FolderSource(Source):
    """The images below PATH/SPLIT/CLASS/, or below PATH/CLASS/ if the folder is not split; see `layouts`.

    Of a folder that is not split, "all" is all of it, "train" four fifths of each class, and "test" (or "val") the
    rest. The order is a fixed stratified shuffle of the file names, so that any slices, such as "all[:90%]" and
    "all[90%:]", hold the classes in the same proportions. Images that lie in no directory have no classes.

    Every file below PATH is in `files`: used, in another split, left out by a rule (hidden files and what programs
    leave behind at any depth, other suffixes, links to what is there already), or unreadable. An empty file, a broken
    link and one without permission are images that cannot be read.

    Raises:
      DataError: if there is no such folder, no image in it, a class without any, or two ways to understand it.
      ConfigError: if the folder has no such split.
    """

    def __init__(self, path: str, split: str):
        root = Path(path).expanduser()
        if not root.is_dir():
            raise DataError(f"folder:{path}: no such directory; give one that holds a directory per class")
        found = survey(root)
        layout = layouts.recognise(root, found, split)
        labels = np.array(layout.labels, np.int32)
        ids = [readable(name) for name in layout.images]
        each = [composed(readable(name)) for name in layout.classes]
        self.label_names = tuple(dict.fromkeys(each))
        if len(self.label_names) < len(each):
            labels = np.array([self.label_names.index(name) for name in each], np.int32)[labels]
            same = [name for name in self.label_names if each.count(name) > 1]
            found.notes["classes of several directories whose names differ only in Unicode's form"] = Tally.of(same)
        order = splits.stratified_order(ids, labels, seed=0)
        begin, end = (round(share * len(order)) for share in layout.share)
        order = order[begin:end]
        self.label_doubt = layout.doubt
        if lacking := set(range(len(self.label_names))) - set(labels[order].tolist()):
            named = Tally.of(self.label_names[label] for label in sorted(lacking))
            found.notes[f"classes of so few images that {split!r} has none"] = named
        self._root = root / layout.base
        self._names = [layout.images[i] for i in order]
        self._ids = [ids[i] for i in order]
        self._labels = labels[order]
        left_out = {name for names in layout.skipped.values() for name in names}
        self._files = Files(
            place=f"folder:{readable(path)}",
            images=len(found.images) - len(left_out),
            used=0,
            skipped=found.skipped | {rule: Tally.of(map(readable, names)) for rule, names in layout.skipped.items()},
            unreadable={readable(name): reason for name, reason in found.unreadable.items() if name not in left_out},
            notes=found.notes,
            prefix=readable(layout.base),
        ).of(self._ids)

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        return self._labels

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    @property
    def files(self) -> tuple[Files, ...]:
        return (self._files,)

    def stamps(self) -> Mapping[str, str]:
        paths = {id_: self._root / name for id_, name in zip(self._ids, self._names, strict=True)}
        return stat_data.described(paths)

    def __getitem__(self, index: int) -> Example:
        content = directories.read(self._root / self._names[index], self._ids[index])
        return {"image": content, "label": int(self._labels[index]), "id": self._ids[index]}

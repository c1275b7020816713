"""Images and captions that a file lists: JSON lines, CSV, and COCO's captions."""

import dataclasses
import functools
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitvlm.core.config import ConfigError
from vitvlm.data import stat_data
from vitvlm.data.accounting import Files, Tally
from vitvlm.data.errors import DataError
from vitvlm.data.names import readable
from vitvlm.data.sources import rows, table
from vitvlm.data.sources.base import Example, Source
from vitvlm.data.sources.columns import as_fields
from vitvlm.data.sources.directories import UNLISTED, entries, files_of, read
from vitvlm.data.sources.labels import USUAL, Labelling
from vitvlm.data.sources.records import RecordSource
from vitvlm.data.sources.rows import COLUMNS

__all__ = ["UNLISTED", "ListedSource", "open_coco", "open_csv", "open_jsonl"]

SEVERAL_NAMES = "files that are listed by several paths or links, each of which is one image"


class ListedSource(table.TableSource):
    """One example per image of a list of rows; rows of the same image are one example with all their captions.

    A file is one image by whatever paths and links it is listed. A row has "image", a path from `root`; "caption", a
    text or several, None or absent if there is none; perhaps "label", a name or number, or a list of them where images
    have several, and "split", whose case does not count. Any other column becomes a field: None where it has no value,
    a tuple where rows of an image differ. Without splits, "train" is nine tenths by a hash of the path, "test" the
    rest, and "all" everything.

    Raises:
      DataError: if there is no row, only some have a label or a split, or rows of an image have different ones.
      ConfigError: if the list has no such split.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        root: Path,
        split: str,
        where: str,
        labelling: Labelling = USUAL,
    ):
        rows = list(rows)
        self._others = _other_names(root, dict.fromkeys(row["image"] for row in rows))
        merged = _merged(rows, self._others, where)
        found = table.read(merged, split, where, labelling, "image")
        self._take(found)
        self._names = list(found.names)
        self._root, self._where = root, where
        self._rows = [merged[name] for name in self._names]
        self._ids = [readable(name) for name in self._names]
        self._listed = list(merged)
        self._fields = list(dict.fromkeys(name for row in merged.values() for name in row if name not in COLUMNS))

    @functools.cached_property
    def files(self) -> tuple[Files, ...]:
        """The images that are listed, and those in the same directories that are not; a look into each directory."""
        found = files_of(self._root, self._listed, self._where)
        if self._others:
            several = Tally.of(f"{readable(name)} is {readable(first)}" for name, first in self._others.items())
            found = dataclasses.replace(found, notes={SEVERAL_NAMES: several})
        return (found.of(self._ids),)

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        value = self._rows[index].get(name)
        return value if name == "caption" else as_fields({name: value}).get(name)

    def stamps(self) -> Mapping[str, str]:
        """Returns, for each image, its file's size and time, and a checksum of its row."""
        paths = {id_: self._root / name for id_, name in zip(self._ids, self._names, strict=True)}
        files = stat_data.described(paths)
        said = (repr(sorted(row.items())).encode("utf-8", "replace") for row in self._rows)
        return {id_: f"{files[id_]} {zlib.crc32(row):08x}" for id_, row in zip(self._ids, said, strict=True)}

    def __getitem__(self, index: int) -> Example:
        return self.outline(index) | {"image": read(self._root / self._names[index], self._ids[index])}

    def outline(self, index: int) -> Example:
        name, row = self._ids[index], self._rows[index]
        rest = as_fields({field: row.get(field) for field in self._fields})
        return rest | {"caption": row["caption"], "image": b"", "label": self._labels[index], "id": name}


def open_jsonl(path: str, split: str, labelling: Labelling = USUAL) -> Source:
    """A JSON object per line; empty lines are passed over. Rows without "image" are examples of their own."""
    file = _file(path, "jsonl")
    found = list(rows.json_rows(file, labelling))
    kind = RecordSource if found and rows.is_alone(found[0]) else ListedSource
    return kind(found, file.parent, split, f"jsonl:{path}", labelling)


def open_csv(path: str, split: str, labelling: Labelling = USUAL) -> Source:
    """Columns named by the first line; a .tsv has tabs between them, and quotation marks are text there."""
    file = _file(path, "csv")
    return ListedSource(rows.csv_rows(file, labelling), file.parent, split, f"csv:{path}", labelling)


def open_coco(place: str, split: str) -> Source:
    """captions_NAME.json with its images in ../NAME/, as COCO lays them out, or "JSON:IMAGES".

    It is one split, "all", also under its own name, so that mixtures can have it: "train" for captions_train2017.json.
    Captions are in the order of their ids.
    """
    path, _, images = place.partition(".json:")
    file = _file(f"{path}.json" if images else place, "coco")
    root = Path(images).expanduser() if images else file.parent.parent / file.stem.removeprefix("captions_")
    if not root.is_dir():
        raise DataError(f"coco:{place}: no directory of images {root}; give it: coco:{file}:IMAGES")
    own = file.stem.removeprefix("captions_").rstrip("0123456789")
    if split not in ("all", own):
        raise ConfigError(f"coco:{place}: no split {split!r}; each file is one split: write split='all' or {own!r}")
    source = ListedSource(rows.coco_rows(file), root, "all", f"coco:{place}")
    source.label_remedy = "captions name no classes; choose a source that has some"
    return source


def _file(path: str, kind: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{kind}:{path}: there is no such file")
    return file


def _merged(rows: Iterable[Mapping[str, Any]], others: Mapping[str, str], where: str) -> dict[str, dict[str, Any]]:
    """Rows by image; "caption" is a text, a tuple of several, or None. `others` has the first names of files.

    So is every column without a meaning of its own in which rows of an image differ.
    """
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = others.get(row["image"], row["image"])
        again = name in merged
        given = row.get("caption")
        texts = tuple(text for text in ([given] if isinstance(given, str) else given or ()) if text.strip())
        own = merged.setdefault(name, {**row, "caption": ()})
        for column in ("label", "split"):
            if own.get(column) != row.get(column):
                told = f"{own.get(column)!r} and {row.get(column)!r}"
                same = "" if name == row["image"] else f", which is the file {name!r},"
                raise DataError(f"{where}: {row['image']!r}{same} is listed with {column} {told}: an image has one")
        own["caption"] += texts
        for column in set(row) - set(COLUMNS) if again else ():
            own[column] = _both(own.get(column), row[column])
    for row in merged.values():
        texts = row["caption"]
        row["caption"] = texts if len(texts) > 1 else texts[0] if texts else None
    return merged


def _both(one: Any, other: Any) -> Any:
    """Merges the values that two rows of an image have in one column: a list where they differ."""
    if other in (None, "") or one == other:
        return one
    if one in (None, ""):
        return other
    said = one if isinstance(one, list) else [one]
    return said + [each for each in (other if isinstance(other, list) else [other]) if each not in said]


def _other_names(root: Path, names: Iterable[str]) -> dict[str, str]:
    """The names of files that are listed by another name before, with that name: `./a.jpg`, or a link to `a.jpg`.

    One look into each directory tells which could be the same.
    """
    there: dict[str, dict[str, int]] = {}
    first: dict[int, list[str]] = {}
    others: dict[str, str] = {}
    for name in names:
        directory, base = os.path.split(name)
        if directory not in there:
            there[directory] = entries(root / directory)
        inode = there[directory].get(base)
        if inode is None:
            continue
        before = first.setdefault(inode, [])
        same = next((each for each in before if os.path.samefile(root / each, root / name)), None)
        if same is None:
            before.append(name)
        else:
            others[name] = same
    return others

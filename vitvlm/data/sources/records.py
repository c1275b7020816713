"""Rows that are examples of their own: texts without images or with some, instructions, chats, frames of a video."""

import base64
import binascii
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitvlm.data import splits, stat_data
from vitvlm.data.accounting import Files
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.kinds import Field, Fields
from vitvlm.data.sources import table
from vitvlm.data.sources.base import Example
from vitvlm.data.sources.columns import as_fields
from vitvlm.data.sources.directories import files_of, read
from vitvlm.data.sources.labels import USUAL, Labelling

FILES = ("images", "video")  # columns that hold lists of paths
BY_IMAGE = "@split_by"  # column of a row: the image by which it is in a split
_DATA, _ADDRESSES = "data:", ("http://", "https://", "s3://", "gs://")


class RecordSource(table.TableSource):
    """One example per row, {"text": …} for one, whose images, if any, are lists of files.

    A row may have "images" or "video", a list of paths from `root` (frames, of a video), or data:…;base64, addresses;
    "label", "split" and "id", as of `listed.ListedSource`. Any other column becomes a text field. Without splits,
    "train" is nine tenths by a hash of the row, so that equal rows are in one split; or of its first image, where the
    row says so (BY_IMAGE).

    Raises:
      DataError: if there is no row, only some have a label or a split, or one id is that of two rows.
      ConfigError: if the rows have no such split.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, Any]], root: Path, split: str, where: str, labelling: Labelling = USUAL
    ):
        named: dict[str, Mapping[str, Any]] = {}
        ids: dict[str, None] = {}
        for number, row in enumerate(rows, 1):
            id_ = str(row.get("id") or f"row {number}")
            if id_ in ids:
                raise DataError(f"{where}: row {number}: has the id of another row, {id_!r}")
            ids[id_] = None
            said = hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=12).hexdigest()
            named[f"{said} {number}" if said in named else said] = row
        own_ids = dict(zip(named, ids, strict=True))
        found = table.read(_split_by_image(named), split, where, labelling, "row")
        self._take(found)
        self._root, self._where = root, where
        self._rows = [named[name] for name in found.names]
        self._ids = [own_ids[name] for name in found.names]
        self._files = [name for name in FILES if any(name in row for row in named.values())]
        self._listed = [path for row in named.values() for name in FILES for path in row.get(name) or ()]
        columns = dict.fromkeys(name for row in named.values() for name in row)
        self._texts = [name for name in columns if name not in ("label", "split", "id", BY_IMAGE, *FILES)]

    @property
    def fields(self) -> Fields:
        return {name: Field(name) for name in self._files}

    @property
    def groups(self) -> Sequence[str]:
        firsts = (next(iter(row.get("images") or row.get("video") or ()), None) for row in self._rows)
        return [first or id_ for first, id_ in zip(firsts, self._ids, strict=True)]

    @functools.cached_property
    def files(self) -> tuple[Files, ...]:
        """The images that are listed, and those in the same directories that are not."""
        names = [name for name in dict.fromkeys(self._listed) if _is_file(name)]
        own = {
            id_: [path for name in FILES for path in row.get(name) or () if _is_file(path)]
            for id_, row in zip(self._ids, self._rows, strict=True)
        }
        return (files_of(self._root, names, self._where, own),) if names else ()

    def __str__(self) -> str:
        return f"{len(self):,} examples"

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        return as_fields({name: self._rows[index].get(name)}).get(name)

    def stamps(self) -> Mapping[str, str]:
        """Returns, for each row, a checksum of it, and the sizes and times of its files."""
        named = {path for row in self._rows for name in FILES for path in row.get(name) or () if _is_file(path)}
        files = stat_data.described({path: self._root / path for path in named})
        told = {}
        for id_, row in zip(self._ids, self._rows, strict=True):
            digest = hashlib.blake2b(repr(sorted(row.items())).encode("utf-8", "replace"), digest_size=4).hexdigest()
            own = [files[path] for name in FILES for path in row.get(name) or () if path in named]
            told[id_] = " ".join([digest, *own])
        return told

    def __getitem__(self, index: int) -> Example:
        row, id_ = self._rows[index], self._ids[index]
        contents = {name: [_content(self._root, path, id_) for path in row.get(name) or ()] for name in self._files}
        return self._told(index) | contents | self._label(index)

    def outline(self, index: int) -> Example:
        empty = {name: [b""] * len(self._rows[index].get(name) or ()) for name in self._files}
        return self._told(index) | empty | self._label(index)

    def _told(self, index: int) -> Example:
        row = self._rows[index]
        return as_fields({name: row.get(name) for name in self._texts}) | {"id": self._ids[index]}

    def _label(self, index: int) -> Example:
        return {"label": self._labels[index]} if self.labelled else {}


def _split_by_image(rows: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """The rows, with a split by a hash of their first image where they ask for it and say none."""
    if not any(BY_IMAGE in row for row in rows.values()) or any(row.get("split") for row in rows.values()):
        return rows
    shares = {"test": table.TEST_SHARE}
    return {name: {**row, "split": splits.by_shares(row.get(BY_IMAGE) or name, shares)} for name, row in rows.items()}


def _is_file(path: str) -> bool:
    return not path.startswith((_DATA, *_ADDRESSES))


def _content(root: Path, path: str, id_: str) -> bytes:
    if path.startswith(_ADDRESSES):
        raise UnreadableImage(f"{path:.80} is an address: download the images, and name their files", id_)
    if not path.startswith(_DATA):
        return read(root / path, id_, f"{root / path}: ")
    head, _, content = path.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("only base64 is read")
        return base64.b64decode(content, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UnreadableImage(f"{head:.40}: its image cannot be read: {error}", id_) from error


def distinct(ids: Sequence[str]) -> list[str]:
    """The ids, those that come again numbered: "7", "7 (2)", … as published lists have some twice."""
    seen: dict[str, int] = {}
    found, taken = [], set(ids)
    for id_ in ids:
        seen[id_] = seen.get(id_, 0) + 1
        name = id_
        while seen[id_] > 1 and (name := f"{id_} ({seen[id_]})") in taken:
            seen[id_] += 1
        found.append(name)
        taken.add(name)
    return found

"""Rows that are examples of their own: texts without images, and texts with several images or the frames of a video."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitvlm.data import stat_data
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.kinds import Field, Fields
from vitvlm.data.sources import table
from vitvlm.data.sources.base import Example
from vitvlm.data.sources.columns import as_fields
from vitvlm.data.sources.labels import USUAL, Labelling

FILES = ("images", "video")  # columns that hold lists of paths


class RecordSource(table.TableSource):
    """One example per row, {"text": …} for one, whose images, if any, are lists of files.

    A row may have "images" or "video", a list of paths from `root` (frames, of a video); "label", "split" and "id", as
    of `listed.ListedSource`. Any other column becomes a text field. Without splits, "train" is nine tenths by a hash of
    the row, so that equal rows are in one split.

    Raises:
      DataError: if there is no row, only some have a label or a split, or one id is that of two rows.
      ConfigError: if the rows have no such split.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, Any]], root: Path, split: str, where: str, labelling: Labelling = USUAL
    ):
        named: dict[str, Mapping[str, Any]] = {}
        ids: dict[str, str] = {}
        for number, row in enumerate(rows, 1):
            id_ = str(row.get("id") or f"row {number}")
            if id_ in ids.values():
                raise DataError(f"{where}: row {number}: has the id of another row, {id_!r}")
            said = hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=12).hexdigest()
            named[f"{said} {number}" if said in named else said] = row
            ids[list(named)[-1]] = id_
        found = table.read(named, split, where, labelling, "row")
        self._take(found)
        self._root = root
        self._rows = [named[name] for name in found.names]
        self._ids = [ids[name] for name in found.names]
        self._files = [name for name in FILES if any(name in row for row in named.values())]
        columns = dict.fromkeys(name for row in named.values() for name in row)
        self._texts = [name for name in columns if name not in ("label", "split", "id", *FILES)]

    @property
    def fields(self) -> Fields:
        return {name: Field(name) for name in self._files}

    def __str__(self) -> str:
        return f"{len(self):,} examples"

    def text(self, index: int, name: str) -> str | tuple[str, ...] | None:
        return as_fields({name: self._rows[index].get(name)}).get(name)

    def stamps(self) -> Mapping[str, str]:
        """Returns, for each row, a checksum of it, and the sizes and times of its files."""
        paths = {str(path): path for row in self._rows for name in FILES for path in self._paths(row, name)}
        files = stat_data.described(paths)
        told = {}
        for id_, row in zip(self._ids, self._rows, strict=True):
            digest = hashlib.blake2b(repr(sorted(row.items())).encode("utf-8", "replace"), digest_size=4).hexdigest()
            own = [files[str(path)] for name in FILES for path in self._paths(row, name)]
            told[id_] = " ".join([digest, *own])
        return told

    def __getitem__(self, index: int) -> Example:
        row, id_ = self._rows[index], self._ids[index]
        example: Example = as_fields({name: row.get(name) for name in self._texts}) | {"id": id_}
        for name in self._files:
            example[name] = [_content(path, id_) for path in self._paths(row, name)]
        return example | ({"label": self._labels[index]} if self.labelled else {})

    def _paths(self, row: Mapping[str, Any], name: str) -> list[Path]:
        return [self._root / path for path in row.get(name) or ()]


def _content(path: Path, id_: str) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise UnreadableImage(f"{path}: {getattr(error, 'strerror', None) or error}", id_) from error

"""Images and captions that a file lists: JSON lines, CSV, and COCO's captions."""

import csv
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vitvlm.core.config import ConfigError, suggest
from vitvlm.data import splits
from vitvlm.data.errors import DataError, UnreadableImage
from vitvlm.data.sources.base import Example, Source
from vitvlm.data.sources.columns import as_fields
from vitvlm.data.sources.labels import USUAL, Classes, Labelling, same_kind, written

_NOT_UTF8 = "is not UTF-8 (save it so)"
TEST_SHARE = 0.1  # of a list that says nothing of splits
NAMES = ("train", "test", "all")
COLUMNS = ("image", "caption", "label", "split")  # with a meaning of their own


class ListedSource(Source):
    """One example per image of a list of rows; rows of the same image are one example with all their captions.

    A row has "image", a path from `root`; "caption", a text or several, None or absent if there is none; perhaps
    "label", a name or number, or a list of them where images have several, and "split". Any other column becomes a
    field: that of the image's first row, None where it does not have it. Without splits, "train" is nine tenths by a
    hash of the path, "test" the rest, and "all" everything.

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
        merged = _merged(rows, where)
        if not merged:
            raise DataError(f"{where}: lists no image")
        for column in ("label", "split"):
            without = [name for name, row in merged.items() if row.get(column) in (None, "")]
            if without and len(without) < len(merged):
                raise DataError(f"{where}: {without[0]!r} has no {column}, and others have: give it to all, or to none")
        told = (
            [str(row["split"]) for row in merged.values()]
            if next(iter(merged.values())).get("split") not in (None, "")
            else None
        )
        chosen = _in_split(list(merged), told, split, where)
        self._root = root
        self._rows = [merged[name] for name in chosen]
        self._ids = chosen
        self._fields = list(dict.fromkeys(name for row in merged.values() for name in row if name not in COLUMNS))
        labels = {name: row["label"] for name, row in merged.items() if row.get("label") is not None}
        if labelling.field and not labels:
            columns = dict.fromkeys(name for row in merged.values() for name in row if name != "label")
            raise DataError(
                f"{where}: no image has a label in {labelling.field!r}; {suggest(labelling.field, columns)}"
            )
        self.multi_label = same_kind(labels.items(), where)
        names = labelling.names()
        classes = Classes(names) if names else Classes.found(labels.values())
        if labels and not classes.names:
            raise DataError(f"{where}: every list of labels is empty")
        self.label_names = classes.names if labels else ()
        self._labels = [classes.label(labels[name], f"{where}: {name!r}") if labels else 0 for name in chosen]

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        return super().labels if self.multi_label else np.array(self._labels, np.int32)

    @property
    def label_sets(self) -> Sequence[Int[np.ndarray, " k"]]:
        return self._labels if self.multi_label else super().label_sets

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    def __getitem__(self, index: int) -> Example:
        name, row = self._ids[index], self._rows[index]
        try:
            content = (self._root / name).read_bytes()
        except OSError as error:
            raise UnreadableImage(error.strerror or str(error), name) from error
        rest = as_fields({field: row.get(field) for field in self._fields})
        return rest | {"caption": row["caption"], "image": content, "label": self._labels[index], "id": name}


def open_jsonl(path: str, split: str, labelling: Labelling = USUAL) -> Source:
    """A JSON object per line; empty lines are passed over."""
    file = _file(path, "jsonl")
    return ListedSource(_json_rows(file, labelling), file.parent, split, f"jsonl:{path}", labelling)


def open_csv(path: str, split: str, labelling: Labelling = USUAL) -> Source:
    """Columns named by the first line; a .tsv has tabs between them."""
    file = _file(path, "csv")
    return ListedSource(_csv_rows(file, labelling), file.parent, split, f"csv:{path}", labelling)


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
    return ListedSource(_coco_rows(file), root, "all", f"coco:{place}")


def _file(path: str, kind: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{kind}:{path}: there is no such file")
    return file


def _json_rows(file: Path, labelling: Labelling) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{file}: line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                row = json.loads(text)
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: {_NOT_UTF8}: {error}") from None
            except ValueError as error:
                raise DataError(f"{where}: is not JSON: {error}") from None
            yield _with_label(_checked(row, where), labelling, where)


def _csv_rows(file: Path, labelling: Labelling) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
        try:
            names = list(reader.fieldnames or ())
            if "image" not in names:
                raise DataError(f"{file}: line 1: names no column 'image'; it has {', '.join(names)}")
            if len(set(names)) < len(names):
                raise DataError(f"{file}: line 1: names a column twice: {', '.join(names)}")
            for row in reader:
                where = f"{file}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: has another number of columns than the first line")
                yield _with_label(_checked(row, where), labelling, where)
        except csv.Error as error:
            raise DataError(f"{file}: line {max(reader.line_num, 1)}: {error}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: after line {reader.line_num}: {_NOT_UTF8}: {error}") from None


def _coco_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        captions: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
        if len(captions) < len(content["images"]):
            raise DataError(f"{file}: two images have the same id")
        for note in sorted(content["annotations"], key=lambda note: note["id"]):
            if note["image_id"] not in captions:
                raise DataError(f"{file}: annotation {note['id']}: there is no image {note['image_id']}")
            captions[note["image_id"]].append(note["caption"])
        for image in content["images"]:
            row = {"image": image["file_name"], "caption": captions[image["id"]], "image_id": image["id"]}
            yield _checked(row, f"{file}: image {image['id']}")
    except DataError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: is no COCO captions file: {type(error).__name__} {error}") from None


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: is {type(row).__name__}, not an object with 'image' and 'caption'")
    if not isinstance(row.get("image"), str) or not row["image"]:
        raise DataError(f"{where}: has no 'image', the path of one; it has {', '.join(row)}")
    caption = row.get("caption")
    if not (caption is None or isinstance(caption, str) or _is_texts(caption)):
        raise DataError(f"{where}: 'caption' is neither a text nor a list of texts: {caption!r:.60}")
    if isinstance(row.get("split"), (list, dict)):
        raise DataError(f"{where}: 'split' is neither a name nor a number: {row['split']!r:.60}")
    return row


def _with_label(row: dict[str, Any], labelling: Labelling, where: str) -> dict[str, Any]:
    """The row with the label that the chosen column has: a text, several texts, or None."""
    column = "label" if labelling.field is None else labelling.field
    label = written(row.get(column), f"{where}: {column!r}", labelling.separator)
    other = {"label_": row["label"]} if column != "label" and "label" in row else {}
    return {**row, **other, "label": label}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _merged(rows: Iterable[Mapping[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """Rows by image; "caption" is a text, a tuple of several, or None."""
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        given = row.get("caption")
        texts = tuple(text for text in ([given] if isinstance(given, str) else given or ()) if text.strip())
        own = merged.setdefault(row["image"], {**row, "caption": ()})
        for column in ("label", "split"):
            if own.get(column) != row.get(column):
                told = f"{own.get(column)!r} and {row.get(column)!r}"
                raise DataError(f"{where}: {row['image']!r} is listed with {column} {told}: an image has one")
        own["caption"] += texts
    for row in merged.values():
        texts = row["caption"]
        row["caption"] = texts if len(texts) > 1 else texts[0] if texts else None
    return merged


def _in_split(names: list[str], told: list[str] | None, split: str, where: str) -> list[str]:
    known = NAMES if told is None else (*sorted(set(told)), "all")
    if split not in known:
        raise ConfigError(f"{where}: no split {split!r}; {suggest(split, known)}")
    if split == "all":
        return names
    if told is None:
        told = [splits.by_shares(name, {"test": TEST_SHARE}) for name in names]
    return [name for name, each in zip(names, told, strict=True) if each == split]

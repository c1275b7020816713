"""Rows of images and captions from files: JSON lines, CSV and TSV, and COCO's captions. Mistakes name the line."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vitvlm.core import files, json_texts
from vitvlm.data.conversations import CHATS, PROMPTS
from vitvlm.data.errors import DataError
from vitvlm.data.names import is_text
from vitvlm.data.sources.conversing import is_record, with_images
from vitvlm.data.sources.labels import Labelling, written

COLUMNS = ("image", "caption", "label", "split")  # with a meaning of their own
RECORD = ("text", "images", "video", *CHATS, *PROMPTS)  # one of which a row without an image has
LONGEST_LINE = 256 * 2**20  # bytes; it may hold an image
_NOT_UTF8 = "is not UTF-8 (save it so)"


def json_rows(file: Path, labelling: Labelling) -> Iterator[dict[str, Any]]:
    """The object of each line; empty lines are passed over.

    All rows are images with captions, or all are records, which the first decides: see `conversing.is_record`.
    """
    alone: bool | None = None
    for number, line in _lines(file):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        try:
            row = json_texts.loads(line, parse_constant=lambda name: None if name == "NaN" else float(name))
        except ValueError as error:
            raise DataError(f"{where}: is not JSON: {error}") from None
        if alone is None:
            alone = isinstance(row, dict) and is_alone(row)
        if alone and isinstance(row, dict):
            yield _with_label(_record(row, where, labelling.field), labelling, where)
            continue
        yield _with_label(_checked(row, where, labelling.field), labelling, where)


def is_alone(row: Mapping[str, Any]) -> bool:
    """Tells whether a row is an example of its own, not an image with captions."""
    return is_record(row) or ("image" not in row and bool(set(row) & set(RECORD)))


def _tables(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields (lines, cells) of a table's records: commas and quotes as in RFC 4180, or tabs and no quotes in a .tsv."""
    if "\r" in next((line for _, line in _lines(file)), ""):
        raise DataError(f"{file}: line 1: has carriage returns: save it with \\n or \\r\\n at the ends of lines")
    if file.suffix.lower() == ".tsv":
        for number, line in _lines(file):
            if line:
                yield f"line {number}", line.split("\t")
        return
    number = 0
    lines = (f"{line}\n" for _, line in _lines(file))
    reader = csv.reader(lines, strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{file}: {_span(number + 1, reader.line_num)}: {error}; is a quotation mark open?"
            ) from None
        if cells is None:
            return
        if cells:
            yield _span(number + 1, reader.line_num), cells
        number = reader.line_num


def csv_rows(file: Path, labelling: Labelling) -> Iterator[dict[str, Any]]:
    """Rows by the names in the first line; cells beyond them may only be empty."""
    names: list[str] = []
    for lines, cells in _tables(file):
        where = f"{file}: {lines}"
        while len(cells) > max(len(names), 1) and not cells[-1]:
            cells = cells[:-1]
        if not names:
            names = cells
            if "image" not in names:
                raise DataError(f"{where}: names no column 'image'; it has {', '.join(names)}")
            if len(set(names)) < len(names):
                raise DataError(f"{where}: names a column twice: {', '.join(names)}")
        elif len(cells) != len(names):
            raise DataError(f"{where}: has {len(cells)} columns, and the first line {len(names)}")
        else:
            yield _with_label(_checked(dict(zip(names, cells)), where, labelling.field), labelling, where)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yields (number, line) without the line's end, which is \\n or \\r\\n; other separators belong to a text."""
    with _opened(file) as lines:
        for number, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), 1):
            if len(line) > LONGEST_LINE:
                raise DataError(f"{file}: line {number}: has more than {LONGEST_LINE:,} bytes")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{file}: line {number}: {_NOT_UTF8}: {error}") from None
            yield number, text.removesuffix("\n").removesuffix("\r")


def _opened(file: Path) -> BinaryIO:
    try:
        return files.open_regular(file)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None


def _span(first: int, last: int) -> str:
    return f"line {first}" if last <= first else f"lines {first} to {last}"


def coco_rows(file: Path) -> Iterator[dict[str, Any]]:
    """An image each, with its captions in the order of their ids."""
    try:
        content = json_texts.loads(files.read_text(file, files.LARGEST_JSON))
        captions: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
        if len(captions) < len(content["images"]):
            raise DataError(f"{file}: two images have the same id")
        for note in sorted(content["annotations"], key=lambda note: note["id"]):
            if note["image_id"] not in captions:
                raise DataError(f"{file}: annotation {note['id']}: there is no image {note['image_id']!r}")
            captions[note["image_id"]].append(note["caption"])
        named: dict[str, int] = {}
        for image in content["images"]:
            if (other := named.setdefault(str(image["file_name"]), image["id"])) != image["id"]:
                raise DataError(
                    f"{file}: the images {other} and {image['id']} have one file_name, {image['file_name']!r}: rename "
                    "or remove one"
                )
            row = {"image": image["file_name"], "caption": captions[image["id"]], "image_id": image["id"]}
            yield _checked(row, f"{file}: image {image['id']}")
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: is not a COCO captions file: {type(error).__name__} {error}") from None


def _checked(row: Any, where: str, own: str | None = None) -> dict[str, Any]:
    """The row, once it is sure that it is one; `own` is the column of the labels where another name was given."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: is {type(row).__name__}, not an object with 'image' and 'caption'")
    _check_columns(row, where, own)
    if not isinstance(row.get("image"), str) or not row["image"]:
        raise DataError(f"{where}: has no 'image', the path of one; it has {', '.join(row)}")
    caption = row.get("caption")
    if not (caption is None or isinstance(caption, str) or _is_texts(caption)):
        raise DataError(f"{where}: 'caption' is neither a text nor a list of texts: {caption!r:.60}")
    return row


def _check_columns(row: dict[str, Any], where: str, own: str | None) -> None:
    """Raises DataError for columns that would not be read as they are meant, and for text that is none."""
    special = [column for column in COLUMNS if column != "label" or own is None]
    for column in row.keys() - COLUMNS:
        meant = column.strip().casefold()
        if meant in special and meant not in row and column != own:
            raise DataError(f"{where}: the column {column!r} would not be read as {meant!r}: rename it to {meant!r}")
    for column, value in row.items():
        if column != "image" and any(not is_text(text) for text in (value if isinstance(value, list) else [value])):
            raise DataError(f"{where}: {column!r} holds half of a character (a lone surrogate): {value!r:.60}")
    if isinstance(row.get("split"), (list, dict)):
        raise DataError(f"{where}: 'split' is neither a name nor a number: {row['split']!r:.60}")


def _record(row: dict[str, Any], where: str, own: str | None) -> dict[str, Any]:
    """A row without "image", once it is sure that it can be an example; see `records.RecordSource`."""
    if "image" in row and not is_record(row):
        raise DataError(f"{where}: has an 'image', and the first row has none: write 'images': ['PATH'] in all rows")
    if not set(row) & set(RECORD):
        raise DataError(f"{where}: has none of {', '.join(map(repr, RECORD))}; it has {', '.join(row)}")
    if is_record(row):
        row = with_images(row, where) if "image" in row or "messages" in row else row
    for column in ("images", "video"):
        paths = row.get(column) or []
        if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
            raise DataError(f"{where}: {column!r} is not a list of paths: {paths!r:.60}")
    _check_columns(row, where, own)
    return row


def _with_label(row: dict[str, Any], labelling: Labelling, where: str) -> dict[str, Any]:
    """The row with the label that the chosen column has: a text, several texts, or None."""
    column = "label" if labelling.field is None else labelling.field
    label = written(row.get(column), f"{where}: {column!r}", labelling.separator)
    other = {"label_": row["label"]} if column != "label" and "label" in row else {}
    return {**row, **other, "label": label}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)

"""Rows of instructions and chats with images, as data sets publish them, made rows of `records.RecordSource`."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitvlm.core import json_texts
from vitvlm.core.files import LARGEST_JSON, read_text
from vitvlm.data.conversations import ANSWERS, CHATS, PROMPTS, is_image
from vitvlm.data.errors import DataError
from vitvlm.data.sources.base import Source
from vitvlm.data.sources.labels import USUAL
from vitvlm.data.sources.records import BY_IMAGE, RecordSource, distinct

# In a part of a content, where the image is: a path, or an object with one.
_PLACES = ("image_url", "image", "path", "url", "file", "file_name")


def is_record(row: Mapping[str, Any]) -> bool:
    """Tells whether a row is a chat, or something asked and answered, not an image with captions."""
    if "caption" in row:
        return False
    return any(row.get(name) for name in CHATS) or (
        any(name in row for name in PROMPTS) and any(name in row for name in ANSWERS)
    )


def with_images(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row with "images", a list of paths if it has any: from "image" and from the parts of its messages.

    Images are in the order in which the messages show them; a part that says of no image which one it is takes the
    row's next one. Raises DataError.
    """
    own = row.get("images") if row.get("images") is not None else row.get("image")
    if row.get("images") is not None and row.get("image"):
        raise DataError(f"{where}: has 'image' and 'images': write one of them")
    images = [own] if isinstance(own, str) else list(own or ()) if isinstance(own, list | type(None)) else None
    if images is None or not all(isinstance(path, str) and path for path in images):
        raise DataError(f"{where}: 'image' is neither a path nor a list of paths: {own!r:.60}")
    new = {name: value for name, value in row.items() if name not in ("image", "images")}
    if isinstance(row.get("messages"), list):
        new["messages"], images = _taken_out(row["messages"], images, where)
    if images or "image" in row or "images" in row:
        new["images"] = images
    return {**new, **({BY_IMAGE: images[0]} if images and "images" not in row else {})}


def open_llava(place: str, split: str) -> Source:
    """LLaVA's list of conversations, JSON or JSON lines: "PATH.json", or "PATH.json:IMAGES", the images' folder.

    Each entry has "conversations" (of "from" and "value"), perhaps "image" (a path or several), and "id". Ids that come
    again are numbered, as in the published lists. Without a "split", nine tenths of the images are "train".

    Raises DataError for a file that is no such list.
    """
    path, file, root = files(place, "llava")
    rows = []
    for number, row in enumerate(_entries(file), 1):
        where = f"{file}: entry {number}"
        if not isinstance(row, Mapping) or not any(name in row for name in CHATS):
            raise DataError(f"{where}: has no 'conversations': it is {row!r:.60}")
        rows.append(with_images(row, where))
    for row, id_ in zip(rows, distinct([str(row.get("id", number)) for number, row in enumerate(rows, 1)])):
        row["id"] = id_
    return RecordSource(rows, root, split, f"llava:{path}", USUAL)


def files(place: str, kind: str) -> tuple[str, Path, Path]:
    """Finds (path, file, folder of images) of "PATH.json:IMAGES", or of "PATH.json" with its images beside it.

    Raises DataError if one of them is not there.
    """
    path, images = place, ""
    for suffix in (".json:", ".jsonl:"):
        if suffix in place:
            path, _, images = place.partition(suffix)
            path += suffix[:-1]
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{kind}:{place}: there is no file {file}")
    root = Path(images).expanduser() if images else file.parent
    if not root.is_dir():
        raise DataError(f"{kind}:{place}: no directory of images {root}")
    return path, file, root


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises DataError."""
    try:
        return json_texts.loads(read_text(file, LARGEST_JSON, "utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is not JSON: {error}") from None


def _entries(file: Path) -> Iterable[Any]:
    if file.suffix == ".jsonl":
        return _lines(file)
    found = read_json(file)
    if not isinstance(found, list):
        raise DataError(f"{file}: is not a list of conversations but {type(found).__name__}")
    return found


def _lines(file: Path) -> Iterator[Any]:
    try:
        lines = read_text(file, LARGEST_JSON, "utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json_texts.loads(line)
            except ValueError as error:
                raise DataError(f"{file}: line {number}: is not JSON: {error}") from None


def _taken_out(messages: list[Any], own: list[str], where: str) -> tuple[list[Any], list[str]]:
    """The messages with {"type": "image"} for each image, and the images' paths in order."""
    rest, found, new = list(own), [], []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list):
            parts = []
            for part in content:
                if is_image(part):
                    path = _path(part, where) or (rest.pop(0) if rest else None)
                    found += [path] if path else []
                    part = {"type": "image"}
                parts.append(part)
            message = {**message, "content": parts}
        new.append(message)
    return new, found + rest


def _path(part: Mapping[str, Any], where: str) -> str | None:
    for name in _PLACES:
        value = part.get(name)
        if isinstance(value, Mapping):
            value = next((value[each] for each in _PLACES if isinstance(value.get(each), str)), None)
        if isinstance(value, str) and value:
            return value
        if value is not None:
            raise DataError(f"{where}: a part of a message has {name!r} that is no path: {part[name]!r:.60}")
    return None

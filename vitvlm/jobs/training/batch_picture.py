"""A picture of a training batch, `batch.png`: its images as the model gets them, with their labels or texts below."""

import dataclasses
import logging
import os
import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vitvlm.data import operations, supervision
from vitvlm.data.operations import colour, text
from vitvlm.training import records

NAME = "batch.png"
MOST = 32  # images
_COLUMNS, _CELL = 8, 150  # images side by side, and the side of the square that each fits into, in pixels
_GAP, _MARGIN, _LINES, _LINE = 10, 20, 2, 17
_PAPER, _INK, _FAINT, _EDGE, _EMPTY = "#ffffff", "#1f2430", "#6b7280", "#d4d7dd", "#f0f1f4"

Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image of a batch, None where it could not be read, and the words below it."""

    image: UInt8[np.ndarray, "H W 3"] | None
    words: str


def save(folder: epath.Path, batch: Batch, ops: str, label_names: Sequence[str] = (), note: str = "") -> bool:
    """Writes `batch.png` into a folder; returns False, and writes nothing, for a batch without images.

    Args:
      batch: as `data.batches` makes it, on the host.
      ops: the operations that made it: what they normalised is undone, and their tokenizer writes the texts.
      label_names: the classes, in the order of the labels.
      note: a line below, about what the training does to the images besides.
    """
    examples = shown(batch, ops, label_names)
    if not examples:
        return False
    total = len(batch["example_mask"])
    title = f"The first training batch, as the model gets it: {len(examples)} of {total} images"
    draw(examples, title, note).save(pathlib.Path(os.fspath(folder)) / NAME)
    return True


def once(folder: epath.Path, ops: str, label_names: Sequence[str], note: str) -> Callable[[Batch], Batch]:
    """Returns a function that gives batches back, and draws the first in a folder that has no such picture; see `save`.

    A picture is no reason to fail a training: what goes wrong is a line in the log.
    """
    left = [not (folder / NAME).exists()]

    def look(batch: Batch) -> Batch:
        if left[0]:
            left[0] = False
            try:
                save(folder, batch, ops, label_names, note)
            except Exception as error:
                logging.getLogger(__name__).warning("%s: %s could not be drawn: %s", folder, NAME, records.line(error))
        return batch

    return look


def shown(batch: Batch, ops: str, label_names: Sequence[str] = ()) -> list[Shown]:
    """The images of a batch, `MOST` at most, as colours, with the words below them."""
    field = next((name for name in ("image", "images") if name in batch), None)
    if field is None:
        return []
    pipeline = operations.parse(ops)
    tokenizer = text.tokenizer_of(pipeline) or supervision.tokenizer_of(pipeline)
    statistics = colour.normalization(pipeline)
    decode = None if tokenizer is None else tokenizer.decode
    found = []
    for row in range(min(len(batch["example_mask"]), MOST)):
        if not batch["example_mask"][row]:
            found.append(Shown(None, "could not be read"))
            continue
        image = _whole(batch, field, row)
        colours = None if image is None else _colours(image, statistics)
        found.append(Shown(colours, _words(batch, row, label_names, decode)))
    return found


def draw(examples: Sequence[Shown], title: str, note: str = "") -> Image.Image:
    """The sheet: rows of images with their words, below a title."""
    across = min(_COLUMNS, max(len(examples), 4))
    rows = -(-len(examples) // across)
    caption = _LINES * _LINE + 4
    width = 2 * _MARGIN + across * _CELL + (across - 1) * _GAP
    head, small = _font(15), _font(12)
    notes = [line for part in note.split("\n") if part for line in _wrapped(part, small, width - 2 * _MARGIN, 4)]
    titles = _wrapped(title, head, width - 2 * _MARGIN, 3)
    top = _MARGIN + len(titles) * (_LINE + 3) + _GAP
    height = top + rows * (_CELL + caption + _GAP) + len(notes) * _LINE + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(titles):
        pen.text((_MARGIN, _MARGIN + number * (_LINE + 3)), line, _INK, head)
    for place, example in enumerate(examples):
        left = _MARGIN + place % across * (_CELL + _GAP)
        upper = top + place // across * (_CELL + caption + _GAP)
        if example.image is None:
            pen.rectangle((left, upper, left + _CELL - 1, upper + _CELL - 1), _EMPTY, _EDGE)
        else:
            image = _fitted(example.image)
            x, y = left + (_CELL - image.width) // 2, upper + (_CELL - image.height) // 2
            sheet.paste(image, (x, y))
            pen.rectangle((x - 1, y - 1, x + image.width, y + image.height), outline=_EDGE)
        for number, line in enumerate(_wrapped(example.words, small, _CELL, _LINES)):
            middle = (left + _CELL / 2, upper + _CELL + 4 + number * _LINE)
            pen.text(middle, line, _INK, small, anchor="ma")
    for number, line in enumerate(notes):
        pen.text((_MARGIN, height - _MARGIN - (len(notes) - number) * _LINE + 4), line, _FAINT, small)
    return sheet


def _whole(batch: Batch, field: str, row: int) -> Float[np.ndarray, "H W C"] | None:
    """An example's image, or the first of several; None where it has none. Patches are put together again."""
    image, mask, grid = (
        batch[name][row] if name in batch else None
        for name in (field, *(f"{'' if field == 'image' else f'{field}_'}patch_{part}" for part in ("mask", "grid")))
    )
    if field == "images":
        if not len(image):
            return None
        image, mask, grid = image[0], None if mask is None else mask[0], None if grid is None else grid[0]
    if mask is None:
        return image
    if "image_times" in batch:
        return None  # these patches are in an order of their own
    h, w = (int(side) for side in grid)
    P, C = round(image.shape[1] ** 0.5), image.shape[-1]
    return image[: h * w].reshape(h, w, P, P, C).transpose(0, 2, 1, 3, 4).reshape(h * P, w * P, C)


def _colours(image: Float[np.ndarray, "H W C"], statistics: Any) -> UInt8[np.ndarray, "H W 3"]:
    """The colours of an image, its normalisation undone."""
    if statistics is not None:
        image = image * statistics[1] + statistics[0]
    elif image.max(initial=0) > 1.5:
        image = image / 255
    pixels = np.clip(np.round(255 * image), 0, 255).astype(np.uint8)
    return np.repeat(pixels[..., :1], 3, axis=-1) if pixels.shape[-1] < 3 else pixels[..., :3]


def _words(batch: Batch, row: int, label_names: Sequence[str], decode: Callable[..., Any] | None) -> str:
    """An example's first text, or else its label or labels."""
    if "text_tokens" in batch and decode is not None:
        ids, mask = (np.asarray(batch[name][row]) for name in ("text_tokens", "text_mask"))
        first = decode(ids.reshape(-1, ids.shape[-1])[:1], mask.reshape(-1, mask.shape[-1])[:1])
        return " ".join(str(first[0]).split())
    if "label" in batch and label_names:
        label = int(batch["label"][row])
        return label_names[label] if 0 <= label < len(label_names) else "without a label"
    if "labels" in batch and label_names:
        return ", ".join(label_names[place] for place in np.flatnonzero(batch["labels"][row])) or "none of the classes"
    return ""


def _fitted(image: UInt8[np.ndarray, "H W 3"]) -> Image.Image:
    """The image, its longer side as long as a cell's: small ones by a whole number, so that pixels stay square."""
    H, W, _ = image.shape
    whole = _CELL // max(H, W)
    if whole >= 1:
        return Image.fromarray(image).resize((W * whole, H * whole), Image.Resampling.NEAREST)
    scale = _CELL / max(H, W)
    return Image.fromarray(image).resize((max(1, round(W * scale)), max(1, round(H * scale))), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu, which Matplotlib brings: it has letters of most alphabets."""
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _wrapped(words: str, font: ImageFont.FreeTypeFont, width: float, most: int) -> list[str]:
    """The words in lines that are no wider than `width`; what does not fit into `most` lines is cut off with "…"."""
    lines: list[str] = []
    for word in textwrap.shorten(words, 2000).split(" ") if words else []:
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"

"""Contact sheets: original, masked and reconstructed images side by side, labelled."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont

COLUMNS = ("original", "masked", "reconstruction")
_SIDE = 160  # an image's longer side on the sheet, at least, in pixels
_GAP, _MARGIN, _HEADER, _CAPTION = 6, 20, 30, 24
_PAPER, _INK, _FAINT, _EDGE = "#ffffff", "#1f2430", "#6b7280", "#d4d7dd"
_HIDDEN = np.array([0.66, 0.74, 0.86])  # a colour, so that it is no grey of the image


class Reconstruction(NamedTuple):
    """One example, its colours in 0..1."""

    title: str
    original: Float[np.ndarray, "H W C"]
    hidden: Bool[np.ndarray, "H W"]
    pasted: Float[np.ndarray, "H W C"]


def save_reconstructions(path: pathlib.Path, examples: Sequence[Reconstruction], note: str = "") -> None:
    """Writes a PNG with one triple per example, two triples per row, and a note below.

    Whole-number enlargement keeps pixels square.
    """
    if not examples:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = examples[0].hidden.shape
    scale = max(1, -(-_SIDE // max(height, width)))
    triple = 3 * width * scale + 2 * _GAP
    across = min(2, len(examples))
    rows = -(-len(examples) // across)
    size = (
        across * triple + (across + 1) * _MARGIN,
        _HEADER + rows * (height * scale + _CAPTION + _GAP) + (_CAPTION if note else 0),
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw, head, small = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(13)
    for position, example in enumerate(examples):
        left = _MARGIN + position % across * (triple + _MARGIN)
        top = _HEADER + position // across * (height * scale + _CAPTION + _GAP)
        masked = np.where(example.hidden[..., None], _HIDDEN, np.broadcast_to(example.original, (height, width, 3)))
        for column, image in enumerate((example.original, masked, example.pasted)):
            x = left + column * (width * scale + _GAP)
            if position < across:
                draw.text((x + width * scale / 2, _HEADER / 2), COLUMNS[column], _INK, head, anchor="mm")
            sheet.paste(_enlarged(image, scale), (x, top))
            draw.rectangle((x - 1, top - 1, x + width * scale, top + height * scale), outline=_EDGE)
        draw.text((left, top + height * scale + _CAPTION / 2), example.title, _FAINT, small, anchor="lm")
    if note:
        draw.text((_MARGIN, size[1] - _CAPTION * 0.7), note, _FAINT, small, anchor="lm")
    sheet.save(path)


def _enlarged(image: Float[np.ndarray, "H W C"], scale: int) -> Image.Image:
    pixels = np.repeat(np.repeat(np.round(image * 255).astype(np.uint8), scale, axis=0), scale, axis=1)
    return Image.fromarray(pixels[..., 0]).convert("RGB") if pixels.shape[-1] == 1 else Image.fromarray(pixels)

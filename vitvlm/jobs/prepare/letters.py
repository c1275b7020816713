"""Detection of text in images: small parts of high contrast in a row, drawn with one pen, that differ in shape."""

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

LONGER_SIDE = 320  # pixels to which larger images are reduced first
WINDOW = 31  # pixels; the brightness around a place is the mean over so many in each direction
CONTRAST = 40  # grey levels by which a letter differs from what is around it
SMALLEST, TALLEST = 6, 0.35  # a letter's height: in pixels, and as a share of the image's
WIDEST = 1.6  # times its height
FILLED = 0.15  # share of its box that a letter fills at least; frames and outlines fill less
TALLER = 1.9  # times the height of its neighbour in the row, as "l" beside "n"
SHIFTED = 0.225  # of the taller one's height, between their feet or between their heads, whichever is closer
GAP = 0.9  # of the taller one's height, between neighbours; a space between words is less
ROW = 4  # letters that make a row
SUSPECT = 5  # letters in rows that make a suspect

# What tells a row of letters from pickets, rafters, windows, beads and leaves.
ALIKE = 0.6  # share that the shapes of two letters, scaled to one box, have in common; a picket is as the next one
PEN = 0.3  # deviation over mean of the width of a letter's strokes, relative to its height; leaves are of any width
THIN = 0.09  # least mean of this width; cracks and twigs are thinner
GAPS = 0.03, 0.6  # median gap over median height: apart, unlike leaning strokes, and close
EDGED = 0.07  # deviation of the grey levels within a letter over its contrast; strokes are mostly edge, blocks are flat
BOX = 12  # pixels of the box
COMPARED = 32  # letters of a row that are looked at; the last ones of a longer row are as the others


def letters_in_rows(pixels: UInt8[np.ndarray, "H W 3"]) -> int:
    """Counts letter-like parts that stand in rows like text; SUSPECT or more of them are probably text.

    This is a heuristic; docs/results.md has its precision and recall. Light parts on dark and dark parts on light are
    counted separately, and the larger number is returned. Handwriting and scripts with joined letters are missed, and
    so is text of low contrast, below about 8 pixels, or on a background as busy as the text.
    """
    scale = LONGER_SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    beyond = grey - cv2.blur(grey, (WINDOW, WINDOW), borderType=cv2.BORDER_REPLICATE)
    return max(_letters(beyond > CONTRAST, grey, beyond), _letters(beyond < -CONTRAST, grey, beyond))


def _letters(mask: Bool[np.ndarray, "H W"], grey: Float[np.ndarray, "H W"], beyond: Float[np.ndarray, "H W"]) -> int:
    """Counts the mask's parts that belong to rows like text."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    boxes, names = _parts(stats, mask.shape[0])
    return sum(len(row) for row in _rows(boxes) if _is_written(boxes[row], names[row], labels, grey, beyond))


def _parts(stats: Int[np.ndarray, "p 5"], H: int) -> tuple[Float[np.ndarray, "k 4"], Int[np.ndarray, " k"]]:
    """Returns (left, top, right, bottom) and label of connected parts with the size and shape of letters."""
    left, top, width, height, area = stats[1:].T.astype(np.float32)
    kept = (height >= SMALLEST) & (height <= TALLEST * H)
    kept &= (width <= WIDEST * height) & (area >= FILLED * width * height)
    return np.stack([left, top, left + width, top + height], axis=1)[kept], 1 + np.flatnonzero(kept)


def _rows(parts: Float[np.ndarray, "k 4"]) -> Iterator[Int[np.ndarray, " n"]]:
    """Rows of at least ROW parts, each from left to right, every part linked to its nearest neighbour on the right."""
    if len(parts) < ROW:
        return
    left, top, right, bottom = parts.T
    height = bottom - top
    taller = np.maximum(height[:, None], height)
    similar = taller <= TALLER * np.minimum(height[:, None], height)
    level = np.minimum(abs(top[:, None] - top), abs(bottom[:, None] - bottom)) <= SHIFTED * taller
    gap = left - right[:, None]  # from the row's part to the column's
    ahead = (left > left[:, None]) & (gap > -0.25 * taller) & (gap <= GAP * taller)
    distance = np.where(similar & level & ahead, gap, np.inf)
    following = np.where(np.isfinite(distance).any(axis=1), distance.argmin(axis=1), -1)
    row = np.arange(len(parts))
    order = np.argsort(left, kind="stable")
    for i in order:  # what is linked from the left has its row already
        if following[i] >= 0:
            row[following[i]] = row[i]
    for name, count in enumerate(np.bincount(row)):
        if count >= ROW:
            yield order[row[order] == name]


def _is_written(
    boxes: Float[np.ndarray, "n 4"],
    names: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, "H W"],
    grey: Float[np.ndarray, "H W"],
    beyond: Float[np.ndarray, "H W"],
) -> bool:
    """Tells whether the parts of a row, from left to right, are like letters: see ALIKE, PEN, THIN, GAPS, EDGED."""
    height = boxes[:, 3] - boxes[:, 1]
    gap = np.median(boxes[1:, 0] - boxes[:-1, 2]) / np.median(height)
    if not GAPS[0] <= gap <= GAPS[1]:
        return False
    shapes, pens, edged = [], [], []
    for (left, top, right, bottom), name in zip(boxes[:COMPARED].astype(int), names):
        place = np.s_[top:bottom, left:right]
        part = labels[place] == name
        shapes.append(cv2.resize(part.astype(np.float32), (BOX, BOX), interpolation=cv2.INTER_AREA).ravel())
        outline = np.pad(part, 1).astype(np.int8)
        length = sum(abs(np.diff(outline, axis=axis)).sum(dtype=int) for axis in (0, 1))
        pens.append(2 * part.sum() / length / (bottom - top))
        edged.append((grey[place][part].std(), abs(beyond[place]).max()))
    within, contrast = np.mean(edged, axis=0)
    if within < EDGED * contrast or np.mean(pens) < THIN or np.std(pens) > PEN * np.mean(pens):
        return False
    one, other = np.triu_indices(len(shapes), 1)
    shapes = np.stack(shapes)
    common = np.minimum(shapes[one], shapes[other]).sum(axis=1) / np.maximum(shapes[one], shapes[other]).sum(axis=1)
    return bool(common.mean() <= ALIKE)

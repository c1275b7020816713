"""Whether an image shows text: small parts of high contrast and similar height that stand in a row."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

LONGER_SIDE = 320  # pixels to which larger images are reduced first
WINDOW = 31  # pixels; the brightness around a place is the mean over so many in each direction
CONTRAST = 40  # grey levels by which a letter differs from what is around it
SMALLEST, TALLEST = 6, 0.35  # a letter's height: in pixels, and as a share of the image's
WIDEST = 1.6  # times its height
FILLED = 0.15  # share of its box that a letter fills at least; frames and outlines fill less
TALLER = 1.9  # times the height of its neighbour in the row, as "l" beside "n"
SHIFTED = 0.45  # of the taller one's height, between their feet and between their heads, whichever is closer
GAP = 0.9  # of the taller one's height, between neighbours; a space between words is less
ROW = 4  # letters that make a row
SUSPECT = 6  # letters in rows that make a suspect


def letters_in_rows(pixels: UInt8[np.ndarray, "H W 3"]) -> int:
    """How many letter-like parts stand in rows of at least ROW; SUSPECT of them or more are probably text.

    A heuristic. Light parts on dark and dark ones on light are looked for apart. Handwriting and scripts whose letters
    join are missed, and so is text of little contrast or below some 8 pixels; rows of windows, teeth or keys look like
    text.
    """
    scale = LONGER_SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    beyond = grey - cv2.blur(grey, (WINDOW, WINDOW), borderType=cv2.BORDER_REPLICATE)
    return max(_in_rows(_parts(beyond > CONTRAST)), _in_rows(_parts(beyond < -CONTRAST)))


def _parts(mask: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "k 4"]:
    """(left, top, right, bottom) of the connected parts that may be letters by their size and shape."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    left, top, width, height, area = stats[1:].T.astype(np.float32)
    kept = (height >= SMALLEST) & (height <= TALLEST * mask.shape[0])
    kept &= (width <= WIDEST * height) & (area >= FILLED * width * height)
    return np.stack([left, top, left + width, top + height], axis=1)[kept]


def _in_rows(parts: Float[np.ndarray, "k 4"]) -> int:
    """How many parts belong to a row of at least ROW, each linked to its nearest neighbour on the right."""
    if len(parts) < ROW:
        return 0
    left, top, right, bottom = parts.T
    height = bottom - top
    taller = np.maximum(height[:, None], height)
    similar = taller <= TALLER * np.minimum(height[:, None], height)
    level = np.minimum(abs(top[:, None] - top), abs(bottom[:, None] - bottom)) <= SHIFTED * taller * 0.5
    gap = left - right[:, None]  # from the row's part to the column's
    ahead = (left > left[:, None]) & (gap > -0.25 * taller) & (gap <= GAP * taller)
    distance = np.where(similar & level & ahead, gap, np.inf)
    following = np.where(np.isfinite(distance).any(axis=1), distance.argmin(axis=1), -1)
    row = np.arange(len(parts))
    for i in np.argsort(left, kind="stable"):  # what is linked from the left has its row already
        if following[i] >= 0:
            row[following[i]] = row[i]
    sizes = np.bincount(row)
    return int(sizes[sizes >= ROW].sum())

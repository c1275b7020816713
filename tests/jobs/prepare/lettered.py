"""Made images with and without text, and what `letters_in_rows` makes of them: `python -m tests.jobs.prepare.lettered`.

Without text: textures that repeat or are ragged (fences, eaves, bricks, windows, blinds, beads, tiles, foliage, gravel,
smooth pictures), turned, blurred and noisy as photographs are, and crops of real photographs. With text: words in many
fonts, sizes, contrasts, colours and angles over all of these.
"""

import functools
import io
import string
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from tests.data import pictures
from vitvlm.jobs.prepare import letters

FONTS = sorted(
    path
    for path in Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")
    if path.stem.startswith("DejaVu") or path.stem in ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic")
    if "Display" not in path.stem
)
SAID = (
    "sale open window tree mountain example hotel price visit the keyboard summer fresh coffee station please do not "
    "enter for rent special offer free shipping new arrivals photo by copyright all rights reserved follow us on made "
    "in italy school street market road closed danger exit welcome best quality limited edition happy birthday"
)
WORDS = SAID.split()
Rng = np.random.Generator


def _canvas(rng: Rng) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, ...], tuple[float, ...]]:
    """Pixels, rows, columns, and two colours apart from one another."""
    height, width = (int(side) for side in rng.integers(180, 420, 2))
    rows, columns = np.mgrid[:height, :width].astype(float)
    first = rng.uniform(0, 255, 3)
    second = np.clip(first + rng.choice([-1, 1]) * rng.uniform(50, 180), 0, 255)
    return np.full((height, width, 3), first), rows, columns, first, second


def _bars(rng: Rng, length: tuple[float, float], share: tuple[float, float]) -> np.ndarray:
    """One to three rows of upright bars, such as pickets, rafters under eaves, balusters and teeth of a moulding."""
    image, rows, columns, _, colour = _canvas(rng)
    period = rng.uniform(7, 28)
    for _ in range(int(rng.integers(1, 4))):
        top, tall = rng.uniform(0, 0.7) * len(rows), rng.uniform(*length) * len(rows)
        jitter = rng.uniform(0, 0.06) * period * rng.normal(size=200)[(columns // period).astype(int)]
        inside = ((columns + jitter) % period < rng.uniform(*share) * period) & (rows > top) & (rows < top + tall)
        image[inside] = colour
    return image


def fence(rng: Rng) -> np.ndarray:
    image = _bars(rng, (0.25, 0.7), (0.35, 0.75))
    if rng.random() < 0.6:  # rails
        for place in rng.uniform(0.2, 0.8, 2):
            image[int(place * len(image)) :][: int(rng.integers(2, 8))] = rng.uniform(0, 255, 3)
    return image


def eaves(rng: Rng) -> np.ndarray:
    return _bars(rng, (0.04, 0.15), (0.3, 0.7))


def bricks(rng: Rng) -> np.ndarray:
    image, rows, columns, _, mortar = _canvas(rng)
    tall = rng.uniform(10, 26)
    wide, gap = tall * rng.uniform(1.2, 2.6), rng.uniform(1.5, 4)
    course = rows // tall
    shifted = columns + (course % 2) * wide / 2
    tint = rng.normal(0, 14, (100, 100))[course.astype(int) % 100, (shifted // wide).astype(int) % 100]
    image += tint[..., None]
    image[(rows % tall < gap) | (shifted % wide < gap)] = mortar
    return image


def windows(rng: Rng) -> np.ndarray:
    image, rows, columns, _, pane = _canvas(rng)
    tall, wide = rng.uniform(16, 60), rng.uniform(14, 50)
    share = rng.uniform(0.4, 0.75, 2)
    lit = rng.random((60, 60)) < rng.uniform(0.6, 1)
    here = lit[(rows // tall).astype(int), (columns // wide).astype(int)]
    inside = (rows % tall < share[0] * tall) & (columns % wide < share[1] * wide) & here
    image[inside] = pane
    if rng.random() < 0.5:  # crosses
        image[inside & (abs(columns % wide - share[1] * wide / 2) < 1.2)] = image[0, 0]
    return image


def blinds(rng: Rng) -> np.ndarray:
    image, rows, _, _, colour = _canvas(rng)
    period = rng.uniform(6, 24)
    image[rows % period < rng.uniform(0.2, 0.6) * period] = colour
    return image


def beads(rng: Rng) -> np.ndarray:
    """Rows of discs or rings: beads, wheels, heads in a crowd, buttons."""
    image, rows, columns, _, colour = _canvas(rng)
    period, ratio = rng.uniform(10, 36), rng.uniform(0.25, 0.45)
    centre = (np.floor(np.stack([rows, columns]) / period) + 0.5) * period
    jitter = rng.normal(0, rng.uniform(0, 0.12) * period, (2, 80, 80))
    place = (centre / period).astype(int) % 80
    centre += jitter[:, place[0], place[1]]
    away = np.hypot(rows - centre[0], columns - centre[1]) / period
    image[(away < ratio) & (away > (ratio - 0.12 if rng.random() < 0.4 else -1))] = colour
    if rng.random() < 0.5:
        image[(rows // period) % 3 != 0] = image[0, 0]
    return image


def tiles(rng: Rng) -> np.ndarray:
    image, rows, columns, _, colour = _canvas(rng)
    period, turn = rng.uniform(10, 40), rng.uniform(0, np.pi / 2)
    a, b = columns * np.cos(turn) + rows * np.sin(turn), rows * np.cos(turn) - columns * np.sin(turn)
    image[(np.floor(a / period) + np.floor(b / period)) % 2 == 0] = colour
    return image


def foliage(rng: Rng) -> np.ndarray:
    """Leaves: ellipses of all directions and shades over one another."""
    image = _canvas(rng)[0].astype(np.uint8)
    base = rng.uniform(20, 200, 3)
    size = rng.uniform(4, 16)
    for _ in range(int(image.shape[0] * image.shape[1] / size**2 * rng.uniform(0.3, 1.5))):
        place = tuple(int(x) for x in rng.uniform(0, image.shape[1::-1]))
        axes = (max(1, int(size * rng.uniform(0.5, 1.2))), max(1, int(size * rng.uniform(0.2, 0.5))))
        shade = tuple(np.clip(base * rng.uniform(0.3, 1.6), 0, 255).tolist())
        cv2.ellipse(image, place, axes, float(rng.uniform(0, 180)), 0, 360, shade, -1, cv2.LINE_AA)
    return image.astype(float)


def gravel(rng: Rng) -> np.ndarray:
    """Noise of one or two scales, with or without a threshold."""
    image, rows, _, first, second = _canvas(rng)
    noise = sum(
        cv2.GaussianBlur(rng.normal(size=rows.shape), (0, 0), sigma) * sigma for sigma in rng.uniform(0.8, 6, 2)
    )
    noise = (noise - noise.mean()) / noise.std()
    if rng.random() < 0.5:
        noise = np.where(noise > rng.uniform(0, 1.2), 1.5, -1)
    return first + (second - first) * np.clip(0.5 + noise / 3, 0, 1)[..., None]


def branches(rng: Rng) -> np.ndarray:
    """Thin dark strokes of all directions: twigs, grass, wires."""
    image = _canvas(rng)[0].astype(np.uint8)
    colour = tuple(rng.uniform(0, 90, 3).tolist())
    lean = rng.uniform(0, np.pi)
    for _ in range(int(rng.integers(40, 250))):
        start, angle = rng.uniform(0, image.shape[1::-1]), lean + rng.normal(0, 0.5)
        end = start + rng.uniform(8, 70) * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(image, tuple(map(int, start)), tuple(map(int, end)), colour, int(rng.integers(1, 4)), cv2.LINE_AA)
    return image.astype(float)


def smooth(rng: Rng) -> np.ndarray:
    height, width = (int(side) for side in rng.integers(150, 400, 2))
    return pictures.pattern(height, width, seed=int(rng.integers(1 << 30))).astype(float)


def plain(rng: Rng) -> np.ndarray:
    return _canvas(rng)[0]


@functools.cache
def _photographs() -> list[np.ndarray]:
    portrait = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    return [*load_sample_images().images, np.asarray(Image.open(portrait).convert("RGB"))]


def photograph(rng: Rng) -> np.ndarray:
    """A crop of one of three real photographs: a Chinese roof, a flower, a portrait in uniform."""
    photos = _photographs()
    photo = photos[int(rng.integers(len(photos)))]
    share = rng.uniform(0.3, 1)
    sides = [int(side * share) for side in photo.shape[:2]]
    top, left = (int(rng.integers(0, whole - side + 1)) for whole, side in zip(photo.shape, sides))
    crop = photo[top : top + sides[0], left : left + sides[1]]
    return crop[:, :: rng.choice([-1, 1])].astype(float)


WITHOUT: dict[str, Callable[[Rng], np.ndarray]] = {
    each.__name__: each
    for each in (fence, eaves, bricks, windows, blinds, beads, tiles, foliage, gravel, branches, smooth, photograph)
}


def taken(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Imitates a photograph of the image: seen from aside, unevenly lit, a little blurred, noisy, and compressed."""
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    seen = corners + rng.uniform(-0.06, 0.06, (4, 2)) * (width, height)
    matrix = cv2.getPerspectiveTransform(corners, seen.astype(np.float32))
    image = cv2.warpPerspective(image, matrix, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
    light = np.linspace(*rng.uniform(0.75, 1.1, 2), width)[None, :, None]
    image = cv2.GaussianBlur(image * light, (0, 0), rng.uniform(0.3, 1.0))
    pixels = np.clip(image + rng.normal(0, rng.uniform(0, 8), image.shape), 0, 255).astype(np.uint8)
    content = pictures.encoded(pixels, "JPEG", quality=int(rng.integers(70, 96)))
    return np.asarray(Image.open(io.BytesIO(content)))


def with_text(image: np.ndarray, rng: Rng) -> np.ndarray:
    """One to three lines of words over it, of a brightness that differs by 70 to 255 grey levels from what is there."""
    height, width = image.shape[:2]
    size = int(rng.integers(14, max(15, min(48, height // 5))))
    font = ImageFont.truetype(FONTS[int(rng.integers(len(FONTS)))], size)
    case = (str.lower, str.upper, string.capwords)[int(rng.integers(3))]
    lines = []
    for _ in range(int(rng.integers(1, 4))):
        line = case(str(rng.choice(WORDS)))
        while font.getlength(longer := f"{line} {case(str(rng.choice(WORDS)))}") < 0.9 * width:
            line = longer
        lines.append(line)
    layer = Image.new("L", (width, height))
    place = (rng.uniform(0.02, 0.06) * width, rng.uniform(0.02, 0.95 - 0.2 * len(lines)) * height)
    ImageDraw.Draw(layer).multiline_text(place, "\n".join(lines), fill=255, font=font)
    layer = layer.rotate(float(rng.uniform(-4, 4)), Image.Resampling.BICUBIC)
    alpha = np.asarray(layer, float)[..., None] / 255
    under = (image.mean(axis=-1, keepdims=True) * alpha).sum() / max(alpha.sum(), 1)
    apart = rng.uniform(70, 255)
    brightness = under + apart if under < 128 else under - apart
    colour = np.clip(brightness + rng.uniform(-30, 30, 3), 0, 255)
    return image * (1 - alpha) + colour * alpha


def made(seed: int) -> list[tuple[str, bool, np.ndarray]]:
    """Makes (ground, whether there is text, pixels) without and with text for every ground; "plain" has text."""
    images = []
    for number, (name, ground) in enumerate({**WITHOUT, "plain": plain}.items()):
        rng = np.random.default_rng((seed, number))
        if name != "plain":
            images.append((name, False, taken(ground(rng), rng)))
        images.append((name, True, taken(with_text(ground(rng), rng), rng)))
    return images


def measured(seeds: range) -> dict[tuple[str, bool], float]:
    """The share of suspects by (ground, whether there is text)."""
    found: dict[tuple[str, bool], list[bool]] = {}
    for seed in seeds:
        for name, has_text, pixels in made(seed):
            found.setdefault((name, has_text), []).append(letters.letters_in_rows(pixels) >= letters.SUSPECT)
    return {key: float(np.mean(suspects)) for key, suspects in found.items()}


def precision_and_recall(shares: dict[tuple[str, bool], float]) -> tuple[float, float]:
    """Returns precision and recall for as many images with text as without, every ground equally often."""
    hits, alarms = (
        np.mean([s for (_, has_text), s in shares.items() if has_text == wanted]) for wanted in (True, False)
    )
    return float(hits / (hits + alarms)), float(hits)


if __name__ == "__main__":
    shares = measured(range(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
    print("ground        false alarms   found")
    for ground in dict.fromkeys(name for name, _ in shares):
        print(f"{ground:12s} {100 * shares.get((ground, False), 0):11.0f} % {100 * shares[ground, True]:6.0f} %")
    print("precision {:.3f}, recall {:.3f}".format(*precision_and_recall(shares)))

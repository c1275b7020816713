"""Text in images: found in drawn text, and seldom in emoji."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.jobs.prepare import lettered
from vitvlm.data import sources
from vitvlm.data.operations.decoding import decode
from vitvlm.jobs.prepare.letters import SUSPECT, letters_in_rows

WORDS = ("SALE", "keyboard", "open", "window", "2024", "tree", "mountain", "example", "HOTEL", "price", "visit", "the")


def _written(background: np.ndarray, seed: int) -> np.ndarray:
    """One to three lines of three words, black on what is bright and white on what is dark."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(background)
    draw, size = ImageDraw.Draw(image), int(rng.integers(12, 30))
    colour = "white" if background.mean() < 128 else "black"
    for line in range(int(rng.integers(1, 4))):
        place = (5, 5 + 1.3 * size * line)
        draw.text(place, " ".join(rng.choice(WORDS, 3)), fill=colour, font=ImageFont.load_default(size))
    return np.asarray(image)


def test_precision_and_recall_on_a_made_set():
    """On emoji and texts over them, without what a camera adds."""
    emoji = sources.open("emoji", "train[:300]")
    plain = [decode(emoji[i]["image"], 3) for i in range(len(emoji))]
    texts = []
    for i in range(60):
        colour = np.random.default_rng(i).integers(0, 256, 3, np.uint8)
        over = np.asarray(Image.fromarray(plain[i * 5]).resize((160, 160)))
        texts.append(_written(over if i % 2 else np.full((120, 200, 3), colour), seed=i))
    hits = sum(letters_in_rows(image) >= SUSPECT for image in texts)
    alarms = sum(letters_in_rows(image) >= SUSPECT for image in plain)
    assert hits / len(texts) >= 0.85 and hits / (hits + alarms) >= 0.9


def test_precision_and_recall_on_textures_and_photographs():
    """Fences, eaves, windows and leaves are no text. 40 sets are in docs/results.md, which says how to make them."""
    shares = lettered.measured(range(2))
    precision, recall = lettered.precision_and_recall(shares)
    assert precision >= 0.9 and recall >= 0.7, shares


@pytest.mark.parametrize("ground", [lettered.fence, lettered.eaves, lettered.windows])
def test_rows_of_equal_parts_are_no_text(ground):
    """What a rule of rows alone takes for text."""
    rng = np.random.default_rng(7)
    pixels = [lettered.taken(ground(rng), rng) for _ in range(12)]
    assert sum(letters_in_rows(image) >= SUSPECT for image in pixels) <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (700, 3), (64, 64)])
def test_images_without_anything_have_no_letters(shape):
    assert letters_in_rows(np.full((*shape, 3), 90, np.uint8)) == 0


def test_dark_and_light_letters_count_the_same_and_large_images_are_reduced():
    image = Image.new("RGB", (300, 60), "white")
    ImageDraw.Draw(image).text((8, 15), "TWELVE LETTERS", fill="black", font=ImageFont.load_default(24))
    pixels = np.asarray(image)
    assert letters_in_rows(pixels) == letters_in_rows(255 - pixels) == 13
    assert letters_in_rows(pixels.repeat(5, axis=0).repeat(5, axis=1)) >= 10  # some letters touch then

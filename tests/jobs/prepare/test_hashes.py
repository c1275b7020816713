"""Hashes of images: what is near stays near, and bands find every pair that a pass over all pairs finds."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data import pictures
from vitvlm.data import sources
from vitvlm.data.operations.decoding import decode
from vitvlm.jobs.prepare import hashes


def _near(*images):
    prints = np.stack([hashes.difference_hash(image) for image in images])
    colours = np.stack([hashes.colour_thumbnail(image) for image in images])
    return hashes.near_pairs(prints, colours).tolist()


@given(st.integers(0, 2**32 - 1), st.integers(0, hashes.FARTHEST), st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_bands_miss_no_pair(seed, farthest, count):
    rng = np.random.default_rng(seed)
    prints = rng.integers(0, 2**16, (4, hashes.BANDS), np.uint16)[rng.integers(0, 4, count)]
    flips = rng.random((count, hashes.BITS)) < rng.choice([0, 0.02, 0.05], (count, 1))
    prints = prints ^ np.packbits(flips, axis=1).view(np.uint16)
    colours = np.full((count, 8, 8, 3), 40, np.uint8) * rng.integers(1, 3, (count, 1, 1, 1), np.uint8)
    expected = [
        [i, j]
        for i, j in itertools.combinations(range(count), 2)
        if (differing := sum(int(a ^ b).bit_count() for a, b in zip(prints[i], prints[j]))) <= farthest
        and 4 * differing <= sum(int(a | b).bit_count() for a, b in zip(prints[i], prints[j]))
        and abs(int(colours[i, 0, 0, 0]) - int(colours[j, 0, 0, 0])) <= hashes.BRIGHTER
    ]
    assert hashes.near_pairs(prints, colours, farthest).tolist() == expected


def test_a_distance_that_bands_could_miss_is_an_error():
    with pytest.raises(ValueError, match="farthest=8 must be from 0 to 7"):
        hashes.near_pairs(np.zeros((2, 8), np.uint16), np.zeros((2, 8, 8, 3), np.uint8), 8)


def test_the_bits_are_where_it_grows_brighter():
    ramp = np.repeat(np.arange(0, 225, 25, dtype=np.uint8)[None, :, None], 9, axis=0).repeat(3, axis=2)
    assert np.bitwise_count(hashes.difference_hash(ramp)).sum() == 64
    assert np.bitwise_count(hashes.difference_hash(ramp.transpose(1, 0, 2))).sum() == 64
    assert not hashes.difference_hash(ramp[:, ::-1]).any() and not hashes.difference_hash(ramp[:1, :1]).any()


def test_scaled_and_compressed_copies_are_near_and_other_images_are_not():
    emoji = sources.open("emoji", "train[:60]")
    images = [decode(emoji[i]["image"], 3) for i in range(0, 60, 3)]
    for image in images:
        smaller = np.asarray(Image.fromarray(image).resize((51, 51), Image.Resampling.LANCZOS))
        assert _near(image, decode(pictures.encoded(image, "JPEG", quality=70), 3)) == [[0, 1]]
        assert _near(image, smaller) == [[0, 1]]
        assert _near(image, (image * 0.95 + 5).astype(np.uint8)) == [[0, 1]]
    photos = [pictures.pattern(40, 31, seed=seed) for seed in range(20)]
    assert _near(*photos) == []


def test_flags_of_one_brightness_are_told_by_their_colours():
    flat = np.zeros((20, 30, 3), np.uint8)
    red, blue = flat + np.uint8([200, 0, 0]), flat + np.uint8([0, 60, 200])
    assert _near(red, blue) == [] and _near(red, red.copy()) == [[0, 1]]


def test_small_things_before_white_are_not_the_same_for_being_mostly_white(monkeypatch):
    dots = np.full((2, 90, 90, 3), 255, np.uint8)
    dots[0, 22:28, 22:28], dots[1, 62:68, 62:68] = 120, 120
    assert _near(*dots) == []
    monkeypatch.setattr(hashes, "SHARE", 1.0)
    assert _near(*dots) == [[0, 1]]

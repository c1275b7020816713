"""The fast ways to decode, resize and normalise, against Pillow and plain NumPy."""

import io

import numpy as np
import pictures
import pytest
from PIL import Image

from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.data.errors import DataError, UnreadableImage

SIZES = [(375, 500), (33, 47), (8, 8), (1, 17)]


def run(text, image, seed=0):
    return operations.parse(text)({"image": image, "id": "x"}, np.random.default_rng(seed))["image"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1, "quality": 30}])
def test_jpegs_decode_to_the_pixels_of_pillow(size, options):
    rng = np.random.default_rng(1)
    noisy = (pictures.pattern(*size) + rng.normal(0, 20, (*size, 3))).clip(0, 255).astype(np.uint8)
    content = pictures.encoded(noisy, "JPEG", **{"quality": 90} | options)
    np.testing.assert_array_equal(run("decode", content), np.asarray(Image.open(io.BytesIO(content))))


def test_a_jpeg_that_xmp_turns():
    turn = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    content = pictures.encoded(pictures.pattern(20, 30), "JPEG", xmp=turn)
    assert run("decode", content).shape == (30, 20, 3)
    thumbnail = b"\xff\xed\0\x06" + b"\xff\xda\0\0"  # a segment in which a scan seems to begin
    assert run("decode", content[:2] + thumbnail + content[2:]).shape == (30, 20, 3)


def test_a_jpeg_that_breaks_off_is_still_unreadable():
    content = pictures.encoded(pictures.pattern(100, 80), "JPEG")
    for kept in (len(content) // 3, len(content) // 2):
        with pytest.raises(UnreadableImage):
            run("decode", content[:kept])


@pytest.mark.parametrize("size", [(375, 500), (300, 160), (1000, 224), (900, 1400), (100, 90)])
def test_the_fast_resize_is_near_the_antialiased_one(size):
    image = pictures.pattern(*size)
    noisy = (image + np.random.default_rng(0).normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)
    for pixels, bound in ((image, 0.6), (noisy, 1.5)):
        exact = run("resize(224)", pixels).astype(int)
        fast = run("resize(224, 'fast')", pixels).astype(int)
        assert fast.shape == (224, 224, 3) and np.abs(fast - exact).mean() < bound
    grey = run("resize((5, 9), 'fast')", image[..., :1])
    assert grey.shape == (5, 9, 1) and grey.dtype == np.uint8


def test_a_fast_crop_is_the_same_window():
    image = pictures.pattern(375, 500)
    for seed in range(5):
        exact = run("random_resized_crop(64, method='bilinear')|flip", image, seed).astype(int)
        fast = run("random_resized_crop(64, method='fast')|flip", image, seed).astype(int)
        assert np.abs(fast - exact).mean() < 1


@pytest.mark.parametrize("name", ["imagenet", "half", "unit"])
def test_normalize_is_the_formula_also_on_views(name):
    image = pictures.pattern(7, 5)[:, ::-1]
    mean, std = operations.colour.statistics(name)
    expected = (image / 255 - mean) / std
    np.testing.assert_allclose(run(f"normalize('{name}')", image), expected, atol=1e-6)


@pytest.mark.parametrize("text, there", [("flip|normalize", True), ("normalize|random_erasing", False)])
def test_an_image_is_put_where_it_is_wanted_by_its_last_operation(text, there):
    image, out = pictures.pattern(7, 5), np.full((7, 5, 3), np.nan, np.float32)
    pipeline = operations.parse(text)
    found = pipeline({"image": image, "id": "x"}, np.random.default_rng(0), {"image": out})["image"]
    np.testing.assert_array_equal(found, run(text, image))
    assert (found is out) == there and np.isnan(out).all() == (not there)
    other = pipeline({"image": image[:3], "id": "x"}, np.random.default_rng(0), {"image": out})["image"]
    np.testing.assert_array_equal(other, run(text, image[:3]))


def test_mistakes():
    with pytest.raises(DataError, match="before normalize"):
        run("normalize|resize(4, 'fast')", pictures.pattern(7, 5))
    with pytest.raises((DataError, ConfigError), match="fast"):
        run("resize(4, 'fats')", pictures.pattern(7, 5))

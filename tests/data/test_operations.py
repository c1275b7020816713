"""Operations against their definitions, and properties that hold for any image and seed."""

import numpy as np
import pictures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.data.errors import DataError
from vitvlm.data.operations import colour, erasing, geometry, randaugment

SIDES = st.integers(1, 40)
SEEDS = st.integers(0, 2**32)


def rng(seed=0):
    return np.random.default_rng(seed)


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([1, 3, 4]))
def test_resize_equals_pillow(H, W, height, width, channels):
    image = rng().integers(0, 256, (H, W, channels), dtype=np.uint8)
    for method, resample in (("bilinear", 2), ("bicubic", 3), ("nearest", 0)):
        ours = geometry.resize(image, (height, width), method)
        pillow = Image.fromarray(image[..., 0] if channels == 1 else image)
        expected = np.asarray(pillow.resize((width, height), Image.Resampling(resample)))
        assert np.array_equal(ours, expected.reshape(height, width, channels))


@given(SIDES, SIDES, SIDES)
def test_resize_small_sets_the_shorter_side_and_keeps_the_ratio(H, W, size):
    resized = geometry.resize_small(np.zeros((H, W, 3), np.uint8), size)
    height, width = resized.shape[:2]
    assert min(height, width) == size
    assert max(height, width) == size * max(H, W) // min(H, W)


@given(H=st.integers(1, 60), W=st.integers(1, 60), size=st.integers(1, 40), fill=st.sampled_from([0, 255]))
def test_resize_pad_shows_the_whole_image_in_the_middle(H, W, size, fill):
    padded = geometry.resize_pad(np.full((H, W, 3), 99, np.uint8), size, fill)
    assert padded.shape == (size, size, 3) and padded.dtype == np.uint8
    rows, columns = (np.flatnonzero((padded[..., 0] == 99).any(axis=axis)) for axis in (1, 0))
    height, width = len(rows), len(columns)
    assert max(height, width) == size and (padded[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 99).all()
    assert (padded != 99).sum() == 3 * (size * size - height * width)
    assert rows[0] == (size - height) // 2 and columns[0] == (size - width) // 2
    assert abs(height - max(1, H * size / max(H, W))) <= 0.5 and abs(width - max(1, W * size / max(H, W))) <= 0.5


@given(SIDES, SIDES, st.data())
def test_central_crop_is_the_middle(H, W, data):
    height, width = data.draw(st.integers(1, H)), data.draw(st.integers(1, W))
    image = (np.arange(H * W) % 251).astype(np.uint8).reshape(H, W, 1)
    cut = geometry.central_crop(image, (height, width))
    assert cut.shape == (height, width, 1)
    assert cut[0, 0, 0] == ((H - height) // 2 * W + (W - width) // 2) % 251


@given(H=st.integers(1, 30), W=st.integers(1, 30), size=st.tuples(SIDES, SIDES), odd=st.sampled_from(["down", "even"]))
def test_central_crop_of_a_smaller_image_has_a_border(H, W, size, odd):
    """Against an image with a border that is wide enough, cut where the margins, negative ones too, say."""
    image = rng(H * W).integers(1, 256, (H, W, 2), dtype=np.uint8)
    cut = geometry.central_crop(image, size, (0, 255), odd)
    wide = np.zeros((H + 80, W + 80, 2), np.uint8)
    wide[..., 1] = 255
    wide[40 : 40 + H, 40 : 40 + W] = image
    places = []
    for side, target in zip((H, W), size):
        half = (side - target) / 2
        places.append(40 + int(np.floor(half) if odd == "down" else np.round(half) if half > 0 else np.ceil(half)))
    top, left = places
    assert np.array_equal(cut, wide[top : top + size[0], left : left + size[1]])


@given(SIDES, SIDES, st.tuples(SIDES, SIDES))
def test_resize_cover_and_contain_touch_the_size_on_one_side(H, W, size):
    image = np.zeros((H, W, 3), np.uint8)
    for operation, nearest in ((geometry.resize_cover, max), (geometry.resize_contain, min)):
        sides, scale = operation(image, size).shape[:2], nearest(size[0] / H, size[1] / W)
        assert any(a == b for a, b in zip(sides, size))
        assert all(abs(side - max(1, scale * before)) <= 0.5 for side, before in zip(sides, (H, W)))


@given(SIDES, SIDES, st.integers(0, 5), SEEDS, st.data())
def test_random_crop_is_a_window_of_the_padded_image(H, W, padding, seed, data):
    height, width = data.draw(st.integers(1, H + 2 * padding)), data.draw(st.integers(1, W + 2 * padding))
    image = rng(1).integers(1, 256, (H, W, 3), dtype=np.uint8)
    cut = geometry.random_crop(image, (height, width), padding, fill=7, rng=rng(seed))
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), constant_values=7)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width, 3))[:, :, 0]
    assert (windows == cut).all(axis=(2, 3, 4)).any()


def test_random_crop_reaches_every_place_evenly():
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    generator = rng()
    places = np.bincount([geometry.random_crop(image, 2, rng=generator)[0, 0, 0] for _ in range(4000)], minlength=9)
    assert places[[0, 1, 3, 4]].min() > 880 and places.sum() == places[[0, 1, 3, 4]].sum()


@settings(max_examples=50)
@given(SIDES, SIDES, SIDES, SIDES, SEEDS)
def test_random_resized_crop_has_its_size_and_range_for_any_image(H, W, height, width, seed):
    image = rng(2).integers(50, 200, (H, W, 3), dtype=np.uint8)
    cut = geometry.random_resized_crop(image, (height, width), method="bilinear", rng=rng(seed))
    assert cut.shape == (height, width, 3) and cut.dtype == np.uint8
    assert cut.min() >= image.min() and cut.max() <= image.max()


def test_random_resized_crop_draws_areas_and_ratios_from_their_ranges():
    generator = rng(3)
    windows = np.array([geometry._window(200, 300, (0.2, 0.5), (0.5, 2.0), generator) for _ in range(3000)])
    top, left, height, width = windows.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 200).all() and (left + width <= 300).all()
    area, ratio = height * width / 60_000, width / height
    assert 0.19 < area.min() < 0.21 and 0.48 < area.max() < 0.51
    assert 0.48 < ratio.min() < 0.55 and 1.8 < ratio.max() < 2.05


def test_random_resized_crop_falls_back_to_the_largest_central_window():
    top, left, height, width = geometry._window(10, 1000, (0.9, 1.0), (3 / 4, 4 / 3), rng())
    assert (height, width, top) == (10, 13, 0) and left == (1000 - 13) // 2


@given(SIDES, SIDES, SEEDS)
def test_flip_mirrors_or_does_not(H, W, seed):
    image = rng(4).integers(0, 256, (H, W, 3), dtype=np.uint8)
    assert np.array_equal(geometry.flip(image, 1.0, rng=rng(seed)), image[:, ::-1])
    assert np.array_equal(geometry.flip(image, 0.0, rng=rng(seed)), image)
    expected = image[:, ::-1] if rng(seed).random() < 0.5 else image
    assert np.array_equal(geometry.flip(image, rng=rng(seed)), expected)


@pytest.mark.parametrize("name", sorted(colour.STATISTICS))
def test_normalize_by_name_is_the_formula(name):
    mean, std = (np.array(values) for values in colour.STATISTICS[name])
    image = pictures.pattern(6, 5, channels=3)[..., : len(mean)]
    normalized = colour.normalize(image, name)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, (image / 255 - mean) / std, atol=2e-6)


def test_normalize_by_numbers_and_its_default():
    image = pictures.pattern(6, 5)
    np.testing.assert_allclose(colour.normalize(image), image / 127.5 - 1, atol=1e-6)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    np.testing.assert_allclose(colour.normalize(image, mean, std), (image / 255 - mean) / std, atol=1e-6)
    np.testing.assert_allclose(colour.normalize(image, 0.0, 1.0), image / 255, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("imagenett",), 'did you mean "imagenet"'),
        (("fashion_mnist", 1.0), "a name or numbers"),
        ((0.5,), "needs a std"),
        (((0.5, 0.5), (1.0, 1.0)), "2 channels, the image 3"),
        ((0.5, 0.0), "std positive"),
    ],
)
def test_normalize_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        colour.normalize(np.zeros((2, 2, 3), np.uint8), *arguments)


def test_statistics_of_the_embedded_set_are_right():
    from vitvlm.data import sources

    emoji = sources.open("emoji", "train")
    decode = operations.parse("decode")
    pixels = np.stack([decode(emoji[i])["image"] for i in range(len(emoji))]).reshape(-1, 3) / 255
    mean, std = colour.STATISTICS["emoji"]
    np.testing.assert_allclose(pixels.mean(0), mean, atol=1e-4)
    np.testing.assert_allclose(pixels.std(0), std, atol=1e-4)


@given(SIDES, SIDES, SEEDS, st.booleans())
def test_random_erasing_changes_one_rectangle_of_the_right_size(H, W, seed, floats):
    image = np.full((H, W, 3), 0.25, np.float32) if floats else np.full((H, W, 3), 255, np.uint8)
    erased = erasing.random_erasing(image, 1.0, rng=rng(seed))
    assert erased.dtype == image.dtype and erased.shape == image.shape
    rows, columns = np.nonzero((erased != image).any(axis=2))
    if len(rows):
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert area <= 0.4 * H * W + H + W
        assert len(rows) >= 0.9 * area - 3
    assert np.array_equal(erasing.random_erasing(image, 0.0, rng=rng(seed)), image)


def test_random_erasing_draws_its_share_of_images_and_areas():
    image, generator = np.zeros((70, 70, 1), np.float32), rng(6)
    shares = np.array([np.mean(erasing.random_erasing(image, rng=generator) != 0) for _ in range(1500)])
    assert 0.45 < np.mean(shares > 0) < 0.55
    assert 0.015 < shares[shares > 0].min() < 0.03 and 0.36 < shares.max() < 0.42
    assert abs(np.median(shares[shares > 0]) - 0.21) < 0.03


@settings(max_examples=40)
@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([1, 3]), st.floats(0, 10), SEEDS)
def test_randaugment_keeps_shape_and_follows_its_seed(H, W, channels, m, seed):
    image = rng(7).integers(0, 256, (H, W, channels), dtype=np.uint8)
    once = randaugment.randaugment(image, 3, m, 0.5, rng=rng(seed))
    assert once.shape == image.shape and once.dtype == np.uint8
    assert np.array_equal(once, randaugment.randaugment(image, 3, m, 0.5, rng=rng(seed)))


def test_randaugment_has_the_papers_transformations_and_magnitude_0_does_nothing():
    assert len(randaugment.TRANSFORMATIONS) == 14
    image = Image.fromarray(pictures.pattern(24, 20))
    for name, transform in randaugment.TRANSFORMATIONS.items():
        same = np.array_equal(np.asarray(transform(image, 0.0, 0, Image.Resampling.BILINEAR)), np.asarray(image))
        assert same == (name not in ("autocontrast", "equalize")), name


def test_randaugment_transformations_at_full_strength_equal_pillow_and_numpy():
    pixels = pictures.pattern(24, 20)
    image = Image.fromarray(pixels)

    def at(name, s):
        return np.asarray(randaugment.TRANSFORMATIONS[name](image, s, 9, Image.Resampling.NEAREST))

    assert np.array_equal(at("solarize", -1.0), 255 - pixels)
    assert np.array_equal(at("posterize", 1.0), pixels & 0xF0)
    assert np.array_equal(at("equalize", 1.0), np.asarray(ImageOps.equalize(image)))
    assert np.array_equal(at("autocontrast", 1.0), np.asarray(ImageOps.autocontrast(image)))
    assert np.array_equal(at("brightness", 1.0), np.asarray(ImageEnhance.Brightness(image).enhance(1.9)))
    assert np.array_equal(at("contrast", -1.0), np.asarray(ImageEnhance.Contrast(image).enhance(0.1)))
    shifted = at("translate_x", 1.0)
    assert np.array_equal(shifted[:, :11], pixels[:, 9:]) and (shifted[:, 11:] == 9).all()
    assert np.array_equal(at("rotate", 1.0), np.asarray(image.rotate(30, fillcolor=(9, 9, 9))))
    sheared = at("shear_x", 1.0)
    for y in range(24):
        x = np.floor(np.arange(20) + 0.5 + 0.3 * (y + 0.5)).astype(int)
        expected = np.where((x < 20)[:, None], pixels[y, np.minimum(x, 19)], 9)
        assert np.array_equal(sheared[y], expected)


def test_randaugment_uses_every_transformation_in_both_directions(monkeypatch):
    seen = set()

    def spy(name):
        def note(image, s, fill, resample):
            seen.add((name, s))
            return image

        return note

    spies = {name: spy(name) for name in randaugment.TRANSFORMATIONS}
    monkeypatch.setattr(randaugment, "TRANSFORMATIONS", spies)
    generator = rng(8)
    for _ in range(300):
        randaugment.randaugment(np.zeros((4, 4, 3), np.uint8), 2, 7.0, rng=generator)
    assert seen == {(name, s) for name in spies for s in (-0.7, 0.7)}


def test_grey_and_rgb():
    image = pictures.pattern(5, 4)
    luma = operations.parse("grey")({"image": image, "id": "x"})["image"][..., 0]
    assert np.abs(luma - image @ [0.299, 0.587, 0.114]).max() <= 1
    grey = operations.parse("grey|rgb")({"image": image, "id": "x"})["image"]
    assert grey.shape == (5, 4, 3) and (grey == grey[..., :1]).all()


@pytest.mark.parametrize(
    "text, message",
    [
        ("resize(20)", "operation resize.20. on the-image: the image is still encoded: put decode first"),
        ("decode|normalize|resize(20)", "put it before normalize"),
        ("decode|normalize|normalize", "once"),
        ("decode|central_crop(500)", "500x500: resize it first"),
        ("decode|central_crop(2, 0, 'up')", "rounding='up' must be 'down' or 'even'"),
        ("decode|random_resized_crop(8, scale=(0.5, 0.1))", "in rising order"),
        ("decode|resize((1, 2, 3))", "pair"),
        ("decode|resize(8, 'cubic')", "there is nearest, bilinear"),
        ("decode|randaugment(m=30)", "within 0..10"),
        ("decode|keep('nmae')", 'did you mean "name"'),
    ],
)
def test_mistakes_name_the_operation_and_the_example(text, message):
    example = {"image": pictures.encoded(pictures.pattern(9, 9)), "label": 0, "id": "the-image", "name": "x"}
    with pytest.raises(DataError, match=message) as caught:
        operations.parse(text)(example, rng())
    assert "the-image" in str(caught.value)


def test_a_random_operation_without_rng_is_an_error():
    with pytest.raises(DataError, match="operation flip on x: it draws random numbers"):
        operations.parse("flip")({"image": np.zeros((2, 2, 1), np.uint8), "id": "x"})


def test_keep_names_the_fields_of_a_batch():
    pipeline = operations.parse("decode|normalize|keep('name', 'group')")
    example = {
        "image": pictures.encoded(pictures.pattern(9, 9)),
        "label": 0,
        "id": "i",
        "name": "n",
        "group": "g",
        "base": "b",
    }
    assert pipeline.kept == ("name", "group")
    assert {name for name in pipeline(example) if name[0] != "@"} == {"image", "label", "id", "name", "group"}


def test_describe_lists_every_operation_with_its_signature():
    lines = operations.describe().splitlines()
    assert [line.split("(")[0] for line in lines] == operations.parsing.OPERATIONS.names()
    expected = "random_crop(size: int | tuple, padding: int = 0, fill: int = 0, *, field: str = 'image', same_draw: "
    assert any(line.startswith(expected) for line in lines)
    with pytest.raises(ConfigError):
        operations.parse("describe")

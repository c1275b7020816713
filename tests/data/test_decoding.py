"""Decoding: every kind of file against its pixels computed here, and what cannot be read is refused with a reason."""

import warnings

import numpy as np
import pictures
import pytest
from PIL import Image

from vitvlm.data.errors import UnreadableImage
from vitvlm.data.operations.decoding import decode

RGB = pictures.pattern(11, 7)
GREY = pictures.pattern(11, 7, channels=1)
ALPHA = pictures.pattern(11, 7, channels=1, seed=5)


def over(colour, alpha, background):
    """The alpha blend of [H, W, 3] over a background, in floats."""
    share = alpha[..., None] / 255
    return colour * share + np.broadcast_to(background, 3) * (1 - share)


def test_rgb_png_gives_its_pixels():
    assert np.array_equal(decode(pictures.encoded(RGB)), RGB)


@pytest.mark.parametrize("form", ["BMP", "TIFF", "PPM"])
def test_lossless_formats_give_their_pixels(form):
    assert np.array_equal(decode(pictures.encoded(RGB, form)), RGB)


def test_grey_stays_grey_or_is_repeated():
    file = pictures.encoded(GREY)
    assert np.array_equal(decode(file, channels=1), GREY[..., None])
    assert np.array_equal(decode(file), np.repeat(GREY[..., None], 3, axis=2))


def test_colour_becomes_luma():
    luma = RGB @ [0.299, 0.587, 0.114]
    assert np.abs(decode(pictures.encoded(RGB), channels=1)[..., 0] - luma).max() <= 1


@pytest.mark.parametrize("background", [255, 0, (10, 200, 30)])
def test_transparency_is_laid_over_the_background(background):
    rgba = np.dstack([RGB, ALPHA])
    expected = over(RGB.astype(float), ALPHA, background)
    assert np.abs(decode(pictures.encoded(rgba), background=background) - expected).max() <= 1
    assert np.array_equal(decode(pictures.encoded(rgba), channels=4), rgba)


def test_grey_with_alpha_is_laid_over_the_background():
    expected = over(np.repeat(GREY[..., None], 3, 2).astype(float), ALPHA, 255)
    decoded = decode(pictures.encoded(np.dstack([GREY, ALPHA])))
    assert np.abs(decoded - expected).max() <= 1


def test_palettes_are_resolved_also_with_transparency():
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decode(pictures.encoded(palette)), np.asarray(palette.convert("RGB")))
    table = np.array(palette.getpalette("RGB")).reshape(-1, 3)
    indices = np.asarray(palette)
    transparent = int(indices[0, 0])
    expected = np.where((indices == transparent)[..., None], 77, table[indices])
    decoded = decode(pictures.encoded(palette, transparency=transparent), background=77)
    assert np.array_equal(decoded, expected)


def test_one_bit_images_are_black_and_white():
    bits = Image.fromarray(GREY > 128)
    assert np.array_equal(decode(pictures.encoded(bits), channels=1)[..., 0], np.where(GREY > 128, 255, 0))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(form):
    values = np.linspace(0, 65535, 77).astype(np.uint16).reshape(11, 7)
    decoded = decode(pictures.encoded(Image.fromarray(values), form), channels=1)[..., 0]
    assert np.array_equal(decoded, np.round(values / 257).astype(np.uint8))
    assert decoded[0, 0] == 0 and decoded[-1, -1] == 255


def test_thirty_two_bits_are_refused():
    for values in (np.ones((4, 4), np.int32), np.ones((4, 4), np.float32)):
        with pytest.raises(UnreadableImage, match="no fixed range"):
            decode(pictures.encoded(Image.fromarray(values), "TIFF"))


def test_cmyk_jpeg_becomes_rgb():
    flat = np.zeros((16, 16, 3), np.uint8) + np.array([200, 40, 90], np.uint8)
    cmyk = Image.fromarray(flat).convert("CMYK")
    decoded = decode(pictures.encoded(cmyk, "JPEG", quality=100))
    assert np.abs(decoded.astype(int) - flat).max() <= 3


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.fromarray(np.full((5, 6, 3), value, np.uint8)) for value in (10, 120, 240)]
    for form, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        file = pictures.encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert np.abs(decode(file).astype(int) - 10).max() <= 1, form


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    undo = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(pictures.encoded(RGB, exif=exif)), undo(RGB))


def test_a_png_bomb_is_refused_before_it_is_decoded():
    bomb = pictures.png_bomb(30_000)
    assert len(bomb) < 200_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(UnreadableImage, match=r"30000x30000|900000000 pixels"):
            decode(bomb)
    with pytest.raises(UnreadableImage, match="100x100 pixels, more than"):
        decode(pictures.png_bomb(100), max_pixels=9999)
    assert decode(pictures.png_bomb(100), max_pixels=10_000).shape == (100, 100, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_files_are_unreadable(form):
    file = pictures.encoded(pictures.pattern(64, 64), form)
    for length in (0, 10, len(file) // 3, len(file) // 2, len(file) - 40):
        with pytest.raises(UnreadableImage):
            decode(file[:length])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_noise_in_a_file_is_either_decoded_or_unreadable():
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM"):
        file = np.frombuffer(pictures.encoded(pictures.pattern(16, 16), form), np.uint8)
        refused = 0
        for _ in range(60):
            damaged = file.copy()
            damaged[rng.integers(len(file), size=3)] = rng.integers(0, 256, 3)
            try:
                assert decode(damaged.tobytes()).ndim == 3
            except UnreadableImage as error:
                refused += 1
                assert "\n" not in str(error)
        assert form in ("BMP", "PPM") or refused > 0


def test_other_formats_are_not_opened():
    with pytest.raises(UnreadableImage, match="not an image of BMP"):
        decode(pictures.encoded(RGB, "EPS"))
    with pytest.raises(UnreadableImage, match="not an image of BMP"):
        decode(b"hello")


def test_pixels_change_their_channels_only():
    assert decode(GREY[..., None], channels=1) is not None
    assert np.array_equal(decode(GREY[..., None]), np.repeat(GREY[..., None], 3, 2))
    assert decode(RGB) is RGB
    with pytest.raises(ValueError, match="channels=2"):
        decode(RGB, channels=2)

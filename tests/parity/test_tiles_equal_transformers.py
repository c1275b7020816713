"""Tiles of large images, and what stands for them in a text, against the processors of `transformers`.

Theirs resize by Pillow, as ours do. Their processors' texts are made without a tokenizer; nanoVLM's tiles, which
`transformers` does not have, are derived anew in NumPy.
"""

import math
import types

import numpy as np
import pytest
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.data.errors import DataError
from vitvlm.data.operations import patches, tracing

# (height, width): of all aspects, smaller and larger than a tile, one pixel, on the border of another grid.
SHAPES = [(31, 45), (14, 14), (1, 1), (7, 90), (90, 7), (28, 56), (57, 28), (100, 3), (64, 63), (200, 150)]
SPLITS = [{"longest": 56}, {"longest": 40}, {"longest": None}, {"longest": 56, "split": False}]
LAST = {"input_data_format": "channels_last"}  # theirs would guess, wrongly for a pixel
HALF = "normalize(0.5, 0.5, field='images')"


def photo(shape, seed=0):
    return np.random.default_rng(seed).integers(256, size=(*shape, 3), dtype=np.uint8)


def run(text, *images):
    return operations.parse(text)({"images": list(images), "id": "0"})


def close(ours, theirs):
    """`ours` [H, W, C] each, theirs [I, C, H, W]."""
    ours = np.stack(ours).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "fields", [{"longest": 56}, {"longest": 40}, {"longest": None}, {"longest": 56, "split": False}]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_idefics3(shape, fields):
    longest, split = fields["longest"], fields.get("split", True)
    found = run(f"tile_idefics3(14, 3, longest={longest}, split={split})|{HALF}", photo(shape))
    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": longest or 1}, max_image_size={"longest_edge": 14}, do_resize=longest is not None
    )
    theirs = processor(photo(shape), return_row_col_info=True, do_image_splitting=split, **LAST)
    close(found["images"], np.array(theirs["pixel_values"][0]))
    maker = types.SimpleNamespace(
        image_token="<image>", fake_image_token="<fake_token_around_image>", global_image_tag="<global-img>",
        image_seq_len=3,
    )  # fmt: skip
    assert found["image_texts"] == (Idefics3Processor.replace_image_token(maker, theirs, 0),)
    assert "image_rows" not in found and found["image_texts"][0].count("<image>") == 3 * len(found["images"])


@pytest.mark.parametrize("grids", [((14, 28), (28, 14), (28, 28), (42, 14), (14, 42)), ((14, 14), (56, 42))])
@pytest.mark.parametrize("shape", SHAPES)
def test_llava_next(shape, grids):
    image = photo(shape)
    found = run(f"tile_llava_next(14, 4, grids={grids})|{HALF}", image)
    square = {"height": 14, "width": 14}
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 14}, crop_size=square, image_grid_pinpoints=[list(grid) for grid in grids],
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    theirs = processor(image, **LAST)
    close(found["images"], np.array(theirs["pixel_values"][0]))
    maker = types.SimpleNamespace(
        image_processor=processor, patch_size=3.5, num_additional_image_tokens=0,
        _get_unpadded_features=lambda *given: LlavaNextProcessor._get_unpadded_features(None, *given),
    )  # fmt: skip
    count = LlavaNextProcessor._get_number_of_features(maker, *shape, 14, 14)
    (rows,) = found["image_rows"]
    assert found["image_texts"] == ("<image>" * int(count),) and len(rows) == count
    assert rows[:16].tolist() == list(range(16)) and set(rows[16:]) <= set(range(16, 16 * len(found["images"]) + 1))


def test_tokens_of_several_images_count_on():
    """The rows of the second image lie behind those of the first; the newline's behind all."""
    first, second = photo((31, 45)), photo((57, 28), 1)
    both = run("tile_llava_next(14, 4, grids=((28, 28), (28, 14)))", first, second)
    one, two = (run("tile_llava_next(14, 4, grids=((28, 28), (28, 14)))", image) for image in (first, second))
    assert (len(one["images"]), len(two["images"]), len(both["images"])) == (5, 3, 8)
    for together, alone, before, count in ((0, one, 0, 5), (1, two, 5, 3)):
        (rows,) = alone["image_rows"]
        newline = rows == 16 * count
        assert newline.sum() > 0
        np.testing.assert_array_equal(both["image_rows"][together], np.where(newline, 16 * 8, rows + 16 * before))


def nanovlm(image, tile, longest, enlarge):
    """Returns the grid and the tiles [n, tile, tile, C], the whole image first, by Pillow and slicing."""
    H, W, _ = image.shape
    long = longest if enlarge else min(longest, -(-max(H, W) // tile) * tile)
    short = max(tile, math.ceil(min(H, W) * (long / max(H, W)) / tile) * tile)
    h, w = (short, long) if W >= H else (long, short)
    large = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC))
    tiles = [large[y : y + tile, x : x + tile] for y in range(0, h, tile) for x in range(0, w, tile)]
    if len(tiles) > 1:
        tiles.insert(0, np.asarray(Image.fromarray(large).resize((tile, tile), Image.Resampling.BILINEAR)))
    return (h // tile, w // tile), tiles


@pytest.mark.parametrize("enlarge", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_nanovlm(shape, enlarge):
    found = run(f"tile_nanovlm(14, 2, 42, enlarge={enlarge})", photo(shape))
    (h, w), tiles = nanovlm(photo(shape), 14, 42, enlarge)
    np.testing.assert_array_equal(np.stack(found["images"]), np.stack(tiles))
    (text,) = found["image_texts"]
    assert text.startswith("<|global_image|><|image|><|image|>") and text.count("<|image|>") == 2 * len(tiles)
    assert ("<row_1_col_1><|image|><|image|>" in text) == (h * w > 1) == (f"<row_{h}_col_{w}>" in text)
    several = run("tile_nanovlm(14, 2, 42)", photo((14, 14)), photo((9, 3)))
    assert several["image_texts"] == tuple(f"<image: {i}><|global_image|><|image|><|image|>" for i in (0, 1))


@pytest.mark.parametrize("limits", [{}, {"min_pixels": 400, "max_pixels": 5000}, {"min_pixels": 6000}])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != (100, 3)])
def test_qwen2_vl(shape, limits):
    given = {"min_pixels": 100, "max_pixels": 20_000} | limits
    image = photo(shape)
    text = (
        f"smart_resize(12, {given['min_pixels']}, {given['max_pixels']}, field='images')|{HALF}|merge_patches(6, 600)"
    )
    found = run(text, image)
    processor = Qwen2VLImageProcessorPil(patch_size=6, image_mean=[0.5] * 3, image_std=[0.5] * 3, **given)
    theirs = processor(image, **LAST)
    (_, h, w) = theirs["image_grid_thw"][0]
    np.testing.assert_array_equal(found["images_patch_grid"][0], (h, w))
    assert found["images_patch_mask"][0].sum() == h * w and found["image_times"] == [0]
    cut = np.asarray(theirs["pixel_values"]).reshape(h * w, 3, 2, 36)
    np.testing.assert_allclose(found["images"][0][: h * w], cut[:, :, 0].transpose(0, 2, 1), atol=1e-5)
    assert not found["images"][0][h * w :].any()
    assert found["image_texts"] == ("<|image_pad|>" * (h * w // 4),)
    np.testing.assert_array_equal(found["image_rows"][0], np.arange(h * w // 4))


def test_sizes_of_qwen2_vl_for_every_shape():
    for shape in np.random.default_rng(0).integers(1, 4000, size=(300, 2)).tolist():
        if max(shape) <= 200 * min(shape):
            assert patches.smart_size(*shape, 28, 3136, 1_003_520) == smart_resize(*shape, max_pixels=1_003_520)


def test_video_of_qwen2_vl():
    """Five frames are three slices of two, whose last frame is there twice, as their video processor pads them."""
    frames = np.random.default_rng(0).normal(size=(5, 8, 12, 3)).astype(np.float32)
    found = operations.parse("merge_patches(2, 32, frames=2, image_token='<v>', field='video')")(
        {"video": list(frames), "id": "0"}
    )
    assert [len(found[name]) for name in ("images", "images_patch_mask", "image_times", "image_texts")] == [3, 3, 3, 1]
    assert found["image_times"].tolist() == [0, 1, 2] and found["image_texts"] == ("<v>" * 18,)
    np.testing.assert_array_equal(found["image_rows"][0], np.concatenate([np.arange(6) + 8 * i for i in range(3)]))
    whole = np.concatenate([frames, frames[-1:]]).reshape(3, 2, 2, 2, 2, 3, 2, 2, 3)  # t f h m p w m p c
    expected = whole.transpose(0, 2, 5, 3, 6, 4, 7, 1, 8).reshape(3, 24, 4, 6)
    np.testing.assert_array_equal(np.stack(found["images"])[:, :24], expected)


def test_pixels_of_a_tile_are_traced_to_the_image():
    """The corners of a tile lie where its pixels came from."""
    example = {"image": photo((28, 56)), "id": "0"}
    found = operations.parse("tile_idefics3(14, 1, longest=28, field='image')")(example)
    origins = found[tracing.ORIGINS]["images"]
    assert "image" not in found and len(origins) == 3
    corners = [[tuple((o.transform @ [x, y, 1])[:2]) for x, y in ((0, 0), (14, 14))] for o in origins]
    assert corners == [[(0, 0), (28, 28)], [(28, 0), (56, 28)], [(0, 0), (56, 28)]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("normalize(field='images')|tile_idefics3(14, 3)", "uint8 pixels, not on float32: put it before normalize"),
        (
            "tile_llava_next(14, 4, grids=((14, 20),))",
            r"grids: \(14, 20\) is not .* in whole tiles of 14",
        ),
        ("merge_patches(3, 64)", "put smart_resize"),
        ("merge_patches(2, 6)", "max_patches=6 must be a multiple of merge x merge, 4"),
        ("smart_resize(4, field='images')", "an image of 1x201: one side is more than 200 times the other"),
    ],
)
def test_bad_input(text, message):
    with pytest.raises((DataError, ConfigError), match=message):
        run(text, photo((1, 201)))


def test_encoded_images_are_refused():
    with pytest.raises(DataError, match="still encoded: put decode first"):
        run("tile_nanovlm(14, 2, 42)", b"...")

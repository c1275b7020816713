"""Boxes, points, masks and relations move with their image: painted, transformed with it, and found again."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data import pictures
from vitvlm.core.transforms import moved, put_back
from vitvlm.data import operations, sources
from vitvlm.data.batches import eval_batches
from vitvlm.data.errors import DataError
from vitvlm.data.kinds import Field
from vitvlm.data.operations.moving import swapped

FIELDS = {"boxes": Field("boxes"), "masks": Field("masks"), "points": Field("points")}
GEOMETRY = (
    "resize((24, 40), 'nearest')",
    "resize_small(18, 'nearest')",
    "resize_cover((17, 31), 'nearest')",
    "resize_contain((17, 31), 'nearest')",
    "resize_pad(30, 0, 'nearest')",
    "central_crop((14, 60), 0)",
    "central_crop(15, 0, 'even')",
    "random_crop((16, 20), padding=4)",
    "random_resized_crop((20, 24), (0.3, 1.0), method='nearest')",
    "flip(1.0)",
    "flip",
    "fit_patches(4, 30, 'nearest')",
)


def run(text, example, seed=0, fields=FIELDS):
    return operations.parse(text).bind(fields)({"id": "x", **example}, np.random.default_rng(seed))


@settings(max_examples=60, deadline=None)
@given(
    ops=st.lists(st.sampled_from(GEOMETRY), min_size=1, max_size=3),
    size=st.tuples(st.integers(20, 40), st.integers(20, 40)),
    place=st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(3, 8), st.integers(3, 8)),
    seed=st.integers(0, 99),
)
def test_a_painted_box_is_found_where_its_box_and_mask_say(ops, size, place, seed):
    left, top, width, height = place
    image = np.zeros((*size, 1), np.uint8)
    image[top : top + height, left : left + width] = 255
    box = np.array([[left, top, left + width, top + height]], np.float32)
    example = {"image": image, "boxes": box, "masks": image[None, ..., 0] > 0}
    try:
        found = run("|".join(ops), example, seed)
    except DataError as error:
        assert "smaller than the crop" in str(error)
        return
    pixels = found["image"][..., 0] > 0
    np.testing.assert_array_equal(found["masks"][0], pixels)  # nearest pixels, both
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    x0, y0, x1, y1 = found["boxes"][0]
    if len(rows):
        painted = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        # The nearest pixel is up to one away, and a later resize makes that larger.
        assert np.abs(np.array(painted) - (x0, y0, x1, y1)).max() <= (1.01 if len(ops) == 1 else 6)
    elif found["boxes_visible"][0] > 0:
        assert min(x1 - x0, y1 - y0) < (1.01 if len(ops) == 1 else 6)  # thinner than a pixel
    assert 0 <= found["boxes_visible"][0] <= 1 and 0 <= found["masks_visible"][0] <= 1


@settings(max_examples=40, deadline=None)
@given(
    ops=st.lists(st.sampled_from(GEOMETRY), min_size=1, max_size=3),
    points=st.lists(st.tuples(st.floats(0, 30), st.floats(0, 25)), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_the_recorded_transform_takes_points_back_to_the_users_own(ops, points, seed):
    example = {"image": pictures.pattern(25, 30), "points": np.array(points, np.float32)}
    try:
        found = run("|".join([*ops, "transform"]), example, seed)
    except DataError as error:
        assert "smaller than the crop" in str(error)
        return
    assert found["transform"].dtype == np.float32 and found["original_size"].tolist() == [25, 30]
    np.testing.assert_allclose(moved(found["points"], found["transform"]), points, atol=2e-3)


def test_a_box_is_clipped_and_says_how_much_of_it_is_seen():
    image = np.zeros((10, 20, 3), np.uint8)
    boxes = np.array([[0, 0, 10, 10], [4, 0, 8, 10], [0, 0, 4, 4], [6, 2, 8, 4]], np.float32)
    example = {"image": image, "boxes": boxes, "things": ("a", "b", "c", "d")}
    found = run("central_crop((10, 10))", example)  # from column 5 on
    np.testing.assert_array_equal(found["boxes"], [[0, 0, 5, 10], [0, 0, 3, 10], [0, 0, 0, 4], [1, 2, 3, 4]])
    np.testing.assert_allclose(found["boxes_visible"], [0.5, 0.75, 0, 1])
    twice = run("central_crop((10, 10))|central_crop((10, 4))", example)  # then from column 8 on
    np.testing.assert_allclose(twice["boxes_visible"], [0.2, 0, 0, 0], atol=1e-6)
    left = run("central_crop((10, 10))|drop_hidden('boxes', 'things', min_visible=0.5)", example)
    assert left["things"] == ("b", "d") and left["boxes"].tolist() == [[0, 0, 3, 10], [1, 2, 3, 4]]
    assert left["@dropped"] == {"rows of 'boxes' of which 0.5 or less is seen (drop_hidden)": 2}


def test_what_is_left_out_is_counted_over_batches_and_padded_rows_are_masked():
    source = sources.open("scenes:side=32,test=6", "test")
    ops = (
        "decode|central_crop(20)|normalize|drop_hidden('boxes', 'masks', min_visible=0.3)"
        "|pad('boxes', 3, 'first')|pad('masks', 3, 'first')|keep('boxes', 'boxes_visible')"
    )
    batches = eval_batches(source, ops, 4)
    seen = list(batches)
    assert seen[0]["boxes"].shape == (4, 3, 4) and seen[0]["masks"].shape == (4, 3, 20, 20)
    mask = np.concatenate([batch["boxes_mask"] for batch in seen])[:6]
    boxes = np.concatenate([batch["boxes"] for batch in seen])[:6]
    assert not boxes[mask == 0].any() and (boxes[mask == 1][:, 2] > boxes[mask == 1][:, 0]).all()
    whole = sum(len(source[i]["boxes"]) for i in range(6))
    hidden = "rows of 'boxes' of which 0.3 or less is seen (drop_hidden)"
    surplus = "rows of 'boxes' beyond the first 3 (pad)"
    assert batches.dropped[hidden] > 0
    assert mask.sum() == whole - batches.dropped[hidden] - batches.dropped.get(surplus, 0)
    for batch in seen:
        np.testing.assert_array_equal(batch["boxes_mask"], batch["masks_mask"])


def test_no_row_is_padded_to_the_shape_of_some():
    """The first example of a set, whose shapes are the batches', may be the one without a box."""
    image = np.zeros((8, 8, 3), np.uint8)
    for boxes in (np.zeros((0, 4), np.float32), np.ones((1, 4), np.float32)):
        found = run("pad('boxes', 2)", {"image": image, "boxes": boxes})
        assert found["boxes"].shape == (2, 4) and found["boxes_mask"].sum() == len(boxes)
    none = run("pad('masks', 2)", {"image": image, "masks": np.zeros((0, 8, 8), bool)})
    assert none["masks"].shape == (2, 8, 8) and none["masks"].dtype == bool


def test_named_points_and_relations_swap_left_and_right_in_mirror_images():
    names = "('nose', 'left_eye', 'right_eye')"
    example = {
        "image": np.zeros((4, 10, 3), np.uint8),
        "keypoints": json.dumps([[5, 1], [3, 2], [8, 2]]),
        "caption": ("A cup LEFT of a leftover", "right"),
        "side": "left",
    }
    text = f"points('keypoints', {names})|relations('caption')|flip({{}})"
    found = run(text.format("1.0"), example, fields={})
    np.testing.assert_array_equal(found["points"], [[5, 1], [2, 2], [7, 2]])
    assert found["caption"] == ("A cup RIGHT of a leftover", "left") and found["side"] == "left"
    same = run(text.format("0.0"), example, fields={})
    np.testing.assert_array_equal(same["points"], [[5, 1], [3, 2], [8, 2]])
    assert same["caption"] == example["caption"]
    twice = run(text.format("1.0") + "|flip(1.0)", example, fields={})
    np.testing.assert_array_equal(twice["points"], same["points"])
    picked = run("relations('caption')|pick_text('caption', to='said')|flip(1.0)", example, fields={})
    assert picked["said"] in ("A cup RIGHT of a leftover", "left")


@given(st.text(alphabet="lefrightLEFRIGHT_ -", max_size=30))
def test_swapping_words_twice_changes_nothing(text):
    words = (("left", "right"),)
    again = swapped(swapped(text, words), words)
    assert again.lower() == text.lower()


def test_turns_of_randaugment_move_points_with_their_pixels():
    image = np.zeros((41, 61, 1), np.uint8)
    image[14:17, 29:32] = 255
    for seed in range(30):
        found = run("randaugment(1, 6, fill=0)", {"image": image, "points": np.array([[30.5, 15.5]], np.float32)}, seed)
        bright = np.argwhere(found["image"][..., 0] > 160)
        if len(bright) and len(bright) < 60 and found["points_visible"][0]:
            assert np.abs(bright.mean(axis=0)[::-1] + 0.5 - found["points"][0]).max() < 1.2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_map_is_put_back_on_the_pixels_as_stored_whatever_exif_says(orientation, form):
    stored = np.zeros((24, 40, 3), np.uint8)
    stored[4:12, 20:36] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    example = {"image": pictures.encoded(stored, form, exif=exif)}
    found = run("decode|resize((32, 32))|transform", example, fields={})
    assert found["original_size"].tolist() == [24, 40]
    bright = found["image"].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3, 4))
    back = put_back(bright, found["transform"], (32, 32), (24, 40), "nearest")
    assert np.isfinite(back).all()
    agree = (back > 127) == (stored[..., 0] > 127)
    assert agree.mean() > 0.93 and (back[6:10, 23:33] > 127).all() and (back[14:, :] < 127).all()


@pytest.mark.parametrize(
    "ops",
    [
        "resize(32)",
        "resize_small(24)",
        "resize_small(24)|central_crop(24)",
        "resize_pad(32)",
        "random_crop(24, padding=4)",
        "flip(1.0)|resize((16, 32))",
        "random_resized_crop(32, (0.5, 1.0))|flip",
    ],
)
def test_a_map_of_the_inputs_brightness_is_the_users_own_where_it_is_seen(ops):
    image = pictures.pattern(30, 44)[..., :1]
    found = run(f"{ops}|transform", {"image": image}, seed=3, fields={})
    H, W, _ = found["image"].shape
    back = put_back(found["image"][..., 0].astype(float), found["transform"], (H, W), (30, 44))
    seen = np.isfinite(back)
    inner = moved(np.argwhere(seen)[:, ::-1] + 0.5, np.linalg.inv(found["transform"].astype(float)))
    assert ((inner >= 0) & (inner <= (W, H))).all() and seen.mean() > 0.2
    assert np.abs(back - image[..., 0])[seen].mean() < 6


def test_a_map_over_naflex_patches_goes_back_too():
    image = pictures.pattern(30, 44)
    found = run("fit_patches(4, 40)|normalize('unit')|patchify(4, 40)|transform", {"image": image}, fields={})
    (h, w), count = found["patch_grid"], int(found["patch_mask"].sum())
    values = found["image"][:count].mean(axis=(1, 2)).reshape(h, w)
    back = put_back(values, found["transform"], (h * 4, w * 4), tuple(found["original_size"]))
    assert back.shape == (30, 44) and np.abs(back - image.mean(axis=-1) / 255).mean() < 0.06


def test_put_back_says_what_cannot_be():
    with pytest.raises(ValueError, match="cannot be inverted"):
        put_back(np.zeros((2, 2)), np.zeros((3, 3)), (4, 4), (4, 4))
    with pytest.raises(ValueError, match="method='cubic'"):
        put_back(np.zeros((2, 2)), np.eye(3), (4, 4), (4, 4), "cubic")


def test_frames_share_their_draw_and_images_do_not_unless_they_say_so():
    frame = pictures.pattern(12, 15)
    text = "random_crop(8, field='{0}'{1})|flip(field='{0}'{1})|random_erasing(1.0, field='{0}'{1})|transform('{0}')"
    video = run(text.format("video", ""), {"video": [frame] * 4}, fields={"video": Field("video")})
    assert all(np.array_equal(each, video["video"][0]) for each in video["video"])
    assert video["video_transform"].shape == (4, 3, 3) and video["video_original_size"].shape == (4, 2)
    images = run(text.format("images", ""), {"images": [frame] * 4}, fields={})
    assert len({each.tobytes() for each in images["images"]}) == 4
    together = run(text.format("images", ", same_draw=True"), {"images": [frame] * 4}, fields={})
    assert len({each.tobytes() for each in together["images"]}) == 1
    apart = run(text.format("video", ", same_draw=False"), {"video": np.stack([frame] * 4)}, fields={})
    assert len({each.tobytes() for each in apart["video"]}) == 4


def test_boxes_of_each_frame_move_with_it():
    frames = [np.zeros((6, 10, 1), np.uint8)] * 2
    boxes = [np.array([[0, 0, 2, 2]], np.float32), np.array([[1, 1, 3, 3], [4, 4, 6, 6]], np.float32)]
    fields = {"video": Field("video"), "boxes": Field("boxes", of="video")}
    found = run("flip(1.0, field='video')", {"video": frames, "boxes": boxes}, fields=fields)
    assert found["boxes"][0].tolist() == [[8, 0, 10, 2]] and found["boxes"][1].tolist() == [[7, 1, 9, 3], [4, 4, 6, 6]]
    with pytest.raises(DataError, match="'boxes' has 1 entries, and there are 2 images"):
        run("flip(1.0, field='video')", {"video": frames, "boxes": boxes[:1]}, fields=fields)


def test_a_copy_has_crops_of_its_own():
    ops = (
        "decode|copy('image', 'view')|resize(8)|random_resized_crop(4, field='view')|normalize|normalize(field='view')"
    )
    (batch,) = eval_batches(sources.open("emoji", "test[:3]"), ops + "|transform('view')", 3)
    assert batch["image"].shape == (3, 8, 8, 3) and batch["view"].shape == (3, 4, 4, 3)
    assert batch["view_transform"].shape == (3, 3, 3) and "transform" not in batch


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ("boxes('caption')", "'caption' is not rows of 4 numbers"),
        ("boxes('numbers')", r"'numbers' is \[1, 2\], not rows of 4 numbers"),
        ("boxes('three', 'xyxx')", "format='xyxx': there is xyxy, xywh, cxcywh"),
        ("points('numbers', ('a', 'b'))|flip(1.0)", "1 points, and names for 2"),
        ("relations('captoin')", "no field 'captoin'; did you mean \"caption\""),
        ("drop_hidden(min_visible=0.5)", "names a field"),
        ("flip(1.0, field='view')", "no field 'view' with an image"),
        ("pad('names', 1)", "'names' has 2 rows: write size=2"),
    ],
)
def test_mistakes(ops, message):
    example = {
        "image": np.zeros((4, 4, 3), np.uint8),
        "caption": "a cat",
        "numbers": "[[1, 2]]",
        "three": "[]",
        "names": ["a", "b"],
    }
    with pytest.raises(DataError, match=message):
        run(ops, example, fields={})


def test_formats_of_boxes():
    for form, written in (("xywh", [[1, 2, 3, 4]]), ("cxcywh", [[2.5, 4, 3, 4]]), ("xyxy", [[1, 2, 4, 6]])):
        found = run(f"boxes('b', '{form}')", {"image": np.zeros((9, 9, 3), np.uint8), "b": json.dumps(written)})
        np.testing.assert_array_equal(found["boxes"], [[1, 2, 4, 6]])
    assert run("boxes('b')|flip(1.0)", {"image": np.zeros((9, 9, 3), np.uint8), "b": None})["boxes"].shape == (0, 4)

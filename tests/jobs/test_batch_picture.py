"""The picture of a batch: each image as the model gets it, its label below, and nothing that does not fit."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from vitvlm.data import operations
from vitvlm.data.operations.patches import patchify
from vitvlm.jobs.training import batch_picture

OPS = "decode(3)|resize(8)|normalize('imagenet')"


def batch(count=4, size=(8, 8), **more):
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = ((pixels / 255 - mean) / std).astype(np.float32)
    return pixels, {"image": images, "example_mask": np.ones(count, np.float32), **more}


def test_images_are_those_before_normalisation_and_labels_are_by_name():
    pixels, made = batch(label=np.array([1, 0, -1, 1], np.int32))
    made["example_mask"][3] = 0
    seen = batch_picture.shown(made, OPS, ("cat", "dog"))
    assert [example.words for example in seen] == ["dog", "cat", "without a label", "could not be read"]
    for example, wanted in zip(seen[:3], pixels):
        np.testing.assert_array_equal(example.image, wanted)
    assert seen[3].image is None


def test_several_labels_and_texts():
    _, made = batch(2, labels=np.array([[1, 0, 1], [0, 0, 0]], np.float32))
    words = [example.words for example in batch_picture.shown(made, OPS, ("a", "b", "c"))]
    assert words == ["a, c", "none of the classes"]
    ops = f"{OPS}|pick_text('name')|tokenize('emoji', 16)"
    tokenizer = batch_picture.text.tokenizer_of(operations.parse(ops))
    tokens, mask = tokenizer.encode(["a cup", "tea"])
    _, made = batch(2, text_tokens=tokens, text_mask=mask, label=np.zeros(2, np.int32))
    assert [example.words for example in batch_picture.shown(made, ops, ("x", "y"))] == ["a cup", "tea"]


def test_patches_are_an_image_again():
    pixels, made = batch(1, (8, 12))
    patched = patchify({"image": made["image"][0]}, 4, 9)
    made = {name: np.asarray(value)[None] for name, value in patched.items()} | {"example_mask": np.ones(1)}
    (seen,) = batch_picture.shown(made, OPS)
    np.testing.assert_array_equal(seen.image, pixels[0])


def test_several_images_and_none():
    pixels, made = batch(3)
    made = {"images": made["image"][:, None], "example_mask": made["example_mask"]}
    np.testing.assert_array_equal(batch_picture.shown(made, OPS)[2].image, pixels[2])
    made["images"] = made["images"][:, :0]
    assert [example.image for example in batch_picture.shown(made, OPS)] == [None] * 3
    assert batch_picture.shown({"text_tokens": np.zeros((2, 4)), "example_mask": np.ones(2)}, "keep('name')") == []


@pytest.mark.parametrize("count", [1, 5, 100])
@pytest.mark.parametrize("size", [(8, 8), (400, 300), (2, 90)])
def test_the_sheet_is_as_large_as_its_images_need(count, size, tmp_path):
    _, made = batch(count, size, label=np.zeros(count, np.int32))
    long = "a class whose name is far too long for the place below its image, " * 3
    batch_picture.once(epath.Path(tmp_path), OPS, (long, "dog"), "Operations: " + OPS * 9)(made)
    sheet = Image.open(tmp_path / "batch.png")
    rows = -(-min(count, batch_picture.MOST) // 8)
    assert 600 < sheet.width <= 1320 and rows * 180 < sheet.height < rows * 220 + 180
    edges = np.concatenate([np.asarray(sheet)[:, :8].ravel(), np.asarray(sheet)[:, -8:].ravel()])
    assert edges.min() == 255  # nothing reaches into the margins
    before = (tmp_path / "batch.png").stat().st_mtime_ns
    batch_picture.once(epath.Path(tmp_path), OPS, (long, "dog"), "")(made)
    assert (tmp_path / "batch.png").stat().st_mtime_ns == before  # of the first batch, for good


def test_a_picture_that_fails_is_a_line_in_the_log(tmp_path, caplog):
    look = batch_picture.once(epath.Path(tmp_path / "gone"), OPS, (), "")
    look(batch()[1])
    assert "batch.png could not be drawn" in caplog.text

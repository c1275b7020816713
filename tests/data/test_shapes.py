"""Shapes of batches from the operations alone equal those of batches of data."""

import numpy as np
import pytest

from tests.data.test_recorded_batches import EVALUATION, TRAINING, make
from vitvlm.core.config import ConfigError
from vitvlm.data import sources
from vitvlm.data.batches import zero_batch
from vitvlm.data.kinds import Field
from vitvlm.data.shapes import batch_shapes


@pytest.mark.parametrize("name", [*TRAINING, *EVALUATION])
def test_equal_those_of_the_data(name, tmp_path):
    make(tmp_path)
    place, split, operations, *_ = (TRAINING | EVALUATION)[name]
    source = sources.open(place.format(tmp_path), split)
    expected = {key: value for key, value in zero_batch(source, operations, 3).items() if value.dtype.kind not in "OSU"}
    found = batch_shapes(operations, 3, source.fields, num_classes=4)
    assert {key: (value.shape, value.dtype) for key, value in found.items()} == {
        key: (value.shape, value.dtype) for key, value in expected.items()
    }
    assert not any(np.any(value) for value in found.values())


def test_an_image_of_which_only_the_source_knows_the_shape():
    with pytest.raises(ConfigError, match=r"do not fix the shape of 'image'.*\(512, 640, 3\).*add resize"):
        batch_shapes("decode|flip|normalize", 2)
    fields = {"image": Field("image", shape=(28, 26, 1))}
    assert batch_shapes("flip|normalize", 2, fields)["image"].shape == (2, 28, 26, 1)
    with pytest.raises(ConfigError, match="do not fix the shape of 'image'"):
        batch_shapes("resize(8)|normalize", 2)  # of how many channels?


def test_large_crops_several_images_and_boxes():
    assert batch_shapes("decode|random_crop(1500)|normalize", 1)["image"].shape == (1, 1500, 1500, 3)
    several = batch_shapes(
        "decode(1, field='images')|resize(8, field='images')|normalize(field='images')|pad('images', 4)", 2
    )
    assert several["images"].shape == (2, 4, 8, 8, 1) and several["image_mask"].shape == (2, 4)
    boxed = batch_shapes(
        "decode|resize(8)|normalize|pad('boxes', 5)|keep('boxes_visible')|transform", 2, {"boxes": Field("boxes")}
    )
    assert boxed["boxes"].shape == (2, 5, 4) and boxed["boxes_mask"].shape == boxed["boxes_visible"].shape == (2, 5)
    assert boxed["transform"].shape == (2, 3, 3) and boxed["original_size"].shape == (2, 2)


def test_labels_and_texts_without_the_tokenizers_files():
    found = batch_shapes("tokenize('hf:NOWHERE', 7, field='text')", 3, num_classes=5, multi_label=True)
    assert {name: array.shape for name, array in found.items()} == {
        "text_tokens": (3, 7),
        "text_mask": (3, 7),
        "labels": (3, 5),
        "example_mask": (3,),
        "index": (3,),
    }
    assert "label" not in batch_shapes("tokenize('emoji', 7)", 3)


@pytest.mark.parametrize("operations", ["decode|resize(8)", "pick_text('a')", "decode|crop(3)"])
def test_mistakes(operations):
    with pytest.raises(ConfigError, match=r"add normalize|leave nothing|no such operation"):
        batch_shapes(operations, 1)

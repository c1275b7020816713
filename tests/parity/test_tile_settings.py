"""Files of the image processors that make several images of one: read into operations, and written again."""

import numpy as np
import pytest
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.pretrained import WeightsError, preprocessing

SQUARE = {"height": 14, "width": 14}
IDEFICS3 = {"size": {"longest_edge": 40}, "max_image_size": {"longest_edge": 14}, "image_std": [0.2, 0.3, 0.4]}
SHUFFLED = {"vision_config": {"image_size": 14, "patch_size": 2}, "scale_factor": 2}
CASES = {
    "Idefics3": (Idefics3ImageProcessorPil, IDEFICS3, {"model_type": "idefics3", **SHUFFLED}),
    "SmolVLM whole": (
        SmolVLMImageProcessorPil,
        IDEFICS3 | {"do_image_splitting": False, "resample": 3},
        {"model_type": "smolvlm", **SHUFFLED},
    ),
    "LLaVA-NeXT": (
        LlavaNextImageProcessorPil,
        {"size": {"shortest_edge": 14}, "crop_size": SQUARE, "image_grid_pinpoints": [[14, 28], [28, 28]]},
        {"model_type": "llava_next", "vision_config": {"image_size": 14, "patch_size": 2}},
    ),
    "Qwen2-VL": (
        Qwen2VLImageProcessorPil,
        {"size": {"shortest_edge": 100, "longest_edge": 900}, "patch_size": 3, "image_mean": [0.1, 0.2, 0.3]},
        {"model_type": "qwen2_vl"},
    ),
}
PHOTO = np.random.default_rng(0).integers(256, size=(31, 45, 3), dtype=np.uint8)
LAST = {"input_data_format": "channels_last"}


def read(name):
    kind, fields, config = CASES[name]
    processor = kind(**fields)
    return processor, config, preprocessing.operations(processor.to_dict(), 3, config)


@pytest.mark.parametrize("name", CASES)
def test_pixels(name):
    processor, _, text = read(name)
    found = operations.parse(text.removeprefix("decode(3)|"))({"image": PHOTO, "id": "0"})["images"]
    theirs = np.asarray(processor(PHOTO, **LAST)["pixel_values"][0])
    if name == "Qwen2-VL":
        theirs = np.asarray(processor(PHOTO, **LAST)["pixel_values"]).reshape(-1, 3, 2, 9)[:, :, 0].transpose(0, 2, 1)
        np.testing.assert_allclose(found[0][: len(theirs)], theirs, atol=1e-5)
    else:
        np.testing.assert_allclose(np.stack(found).transpose(0, 3, 1, 2), theirs, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name):
    """The file that is written makes theirs the same again, and is read as the same operations."""
    processor, config, text = read(name)
    described, differences = preprocessing.described(text, config)
    assert not differences and preprocessing.operations(described, 3, config) == text
    described = {key: value for key, value in described.items() if key != "image_processor_type"}
    again = type(processor)(**described)
    for field in (
        "size",
        "resample",
        "image_mean",
        "image_std",
        "max_image_size",
        "image_grid_pinpoints",
        "patch_size",
    ):
        assert getattr(again, field, None) == getattr(processor, field, None), field


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("Idefics3", {"max_image_size": {"longest_edge": 28}}, "max_image_size 28, but the model's images have 14"),
        ("Idefics3", {"size": {"height": 3, "width": 3}}, "write a longest_edge"),
        ("LLaVA-NeXT", {"crop_size": {"height": 7, "width": 7}}, "tiles are read that all have one side"),
        ("Qwen2-VL", {"do_resize": False}, "whole numbers of pixels and patches are read, and a resize"),
        ("Qwen2-VL", {"patch": 3}, "Qwen2VLImageProcessor has no such setting"),
    ],
)
def test_what_is_not_read_is_said(name, changes, message):
    processor, config, _ = read(name)
    with pytest.raises(WeightsError, match=message):
        preprocessing.operations(processor.to_dict() | changes, 3, config)


def test_operations_that_no_file_says():
    with pytest.raises(ConfigError, match="merge_patches without a smart_resize has no image processor"):
        preprocessing.described("decode(3)|resize(8)|normalize('half')|merge_patches(2, 16, field='image')", {})
    with pytest.raises(ConfigError, match="tile_nanovlm"):
        preprocessing.described("decode(3)|tile_nanovlm(8, 4, 24, field='image')|normalize('unit', field='images')", {})

"""Class names and preprocessing as configs of others may hold them: gaps, nulls, and numbers that are none."""

import pytest

from vitvlm.pretrained import class_names, preprocessing, timm_preprocessing
from vitvlm.pretrained.entries import WeightsError

NAN = float("nan")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"2": "c", "0": "a", "1": "b"}, ("a", "b", "c")),
        ({"0": "a", "2": "c"}, ("a", "LABEL_1", "c")),
        ({"0": None, "1": "b", "2": "c"}, ("LABEL_0", "b", "c")),
        (["a", None, "c"], ("a", "LABEL_1", "c")),
        (["a", "a", "c"], ("a", "a", "c")),
        ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, None),
        ([None] * 3, None),
        (["LABEL_2", "LABEL_0", "LABEL_1"], ("LABEL_2", "LABEL_0", "LABEL_1")),
    ],
)
def test_names_of_classes(given, names):
    assert class_names.read(given, 3) == names


@pytest.mark.parametrize("given", [{"1": "a", "2": "b", "3": "c"}, {"00": "a"}, ["a", "b"], "abc"])
def test_names_that_do_not_fit_the_head(given):
    with pytest.raises(WeightsError, match="names of classes"):
        class_names.read(given, 3)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("ViT", {"rescale_factor": NAN}, "rescale_factor nan"),
        ("ViT", {"image_mean": [NAN] * 3}, r"image_mean \[nan"),
        ("ViT", {"image_std": [0.5, 0.5, float("inf")]}, "image_std"),
        ("ViT", {"image_mean": [0.5] * 4}, "image_mean"),
        ("ConvNext", {"size": 224, "crop_pct": 300}, "crop_pct 300 leaves no pixel of 224"),
        ("CLIP", {"size": [224]}, r"size \[224\]"),
        ("CLIP", {"size": "224"}, "size '224'"),
    ],
)
def test_settings_that_are_no_numbers(kind, settings, message):
    with pytest.raises(WeightsError, match=f"preprocessor_config.json: {message}"):
        preprocessing.operations({"image_processor_type": f"{kind}ImageProcessor", **settings}, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_pct": "0.9"}, "crop_pct '0.9'; write a share of 224x224 pixels"),
        ({"crop_pct": NAN}, "crop_pct nan"),
        ({"crop_pct": -1}, "crop_pct -1"),
        ({"crop_pct": 1e9}, "crop_pct 1000000000.0"),
        ({"mean": 0.5}, "mean 0.5; write a number for each of 3 channels"),
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"std": [NAN] * 3}, "std"),
        ({"std": [0, 1, 1]}, "std .* write numbers above 0"),
        ({"input_size": 224, "crop_pct": 0.9}, "input_size 224; write"),
        ({"input_size": [1, 224, 224], "crop_pct": 0.9}, "mean .* write a number for each of 1 channels"),
    ],
)
def test_timms_settings_that_are_no_numbers(settings, message):
    with pytest.raises(WeightsError, match=rf"pretrained_cfg\.{message}"):
        timm_preprocessing.operations(settings)

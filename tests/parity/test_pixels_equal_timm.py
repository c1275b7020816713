"""Evaluation pixels of timm's pretrained_cfg and open_clip's preprocess_cfg against what these made, as recorded."""

import json
from pathlib import Path

import numpy as np
import pytest

from vitvlm import pretrained
from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.data.operations import colour
from vitvlm.pretrained import open_clip, timm_preprocessing

RECORDED = np.load(Path(__file__).parent / "recorded" / "pixels.npz")
IMAGES = [name for name in RECORDED.files if name.startswith("image/")]
CASES = [name for name in RECORDED.files if name.count("/") == 1 and not name.startswith("image/")]


def ours(case: str) -> str:
    settings = json.loads(str(RECORDED[case]))
    if case.startswith("timm/"):
        return timm_preprocessing.operations(settings)
    return open_clip.operations({k: v for k, v in settings.items() if k != "size"}, settings["size"])


@pytest.mark.parametrize("case", CASES)
def test_pixels(case):
    pipeline = operations.parse(ours(case))
    mean, std = colour.normalization(pipeline)
    for j, name in enumerate(IMAGES):
        found = pipeline({"image": RECORDED[name], "id": name})["image"]
        np.testing.assert_allclose(255 * (found * std + mean), RECORDED[f"{case}/{j}"], atol=0.01, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_makes_the_same_pixels(case):
    """The operations as a config of the same format, read again."""
    text = ours(case)
    if case.startswith("timm/"):
        size = json.loads(str(RECORDED[case]))["input_size"]
        said, differences = timm_preprocessing.described(text, size[1:])
        again = timm_preprocessing.operations({"input_size": size, **said})
    else:
        size = tuple(np.broadcast_to(json.loads(str(RECORDED[case]))["size"], 2).tolist())
        said, differences = open_clip.described(text, size)
        again = open_clip.operations(said, size)
    assert again.replace(", 0, rounding", ", rounding") == text.replace(", 0, rounding", ", rounding")
    assert not differences


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"crop_mode": "corner"}, "crop_mode 'corner'; there is: border, center, squash"),
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"crop_border_pixels": 4}, "crop_border_pixels = 4 is not known"),
    ],
)
def test_what_timm_says_that_is_not_known(described, message):
    with pytest.raises(pretrained.WeightsError, match=message):
        timm_preprocessing.operations({"input_size": [3, 8, 8], **described})


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"resize_mode": "fit"}, "resize_mode 'fit'; there is: longest, shortest, squash"),
        ({"interpolation": "lanczos"}, "interpolation 'lanczos'; there is: bicubic, bilinear"),
        ({"size": 9}, r"size 9 is not vision_cfg.image_size \(8, 8\)"),
        ({"mode": "L"}, "mode 'L'"),
        ({"jitter": 1}, "jitter = 1 is not known"),
    ],
)
def test_what_open_clip_says_that_is_not_known(described, message):
    with pytest.raises(pretrained.WeightsError, match=message):
        open_clip.operations(described, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("decode|normalize", "timm always resizes"),
        ("decode|resize(9)|normalize", "cuts the middle 8x8"),
        ("decode|resize_small(9)|normalize", "cuts the middle 8x8"),
        ("decode|resize_pad(8, 3)|normalize", "mean colour .*, not 3"),
        ("decode|resize(8)|grey|normalize", "grey does not fit"),
        ("decode|central_crop(8)|resize(8)|normalize", "in this order"),
        ("decode|resize(8)", "no normalize"),
    ],
)
def test_what_timm_does_not_do(text, message):
    with pytest.raises(ConfigError, match=message):
        timm_preprocessing.described(text, (8, 8))


def test_what_open_clip_does_not_do():
    with pytest.raises(ConfigError, match=r"no resize_contain, and no a resize to 9"):
        open_clip.described("decode|resize_contain(9)|normalize", (8, 8))


def test_what_is_done_a_little_otherwise_is_said():
    text = "decode(3, 0)|resize_small(9, 'fast')|central_crop(8)|normalize"
    for said, differences in (
        timm_preprocessing.described(text, (8, 8)),
        open_clip.described(text.replace("9", "8"), (8, 8)),
    ):
        assert said["interpolation"] == "bilinear"
        assert [d.split(",")[0].split(" is ")[0] for d in differences] == [
            "a bilinear resize in place of a fast one",
            "the central crop rounds half of an odd margin the other way",
            "transparent parts are laid over white rather than 0",
        ]

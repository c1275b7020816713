"""Pixels of every image processor of `transformers` that our families are published with, on photographs.

The settings are those of published checkpoints at full size, old and new, and odd ones. Theirs are the processors that
resize by Pillow, as published checkpoints were made; where these refuse grey and transparent images because the file
does not say do_convert_rgb, the images are converted before, by their own function.
"""

import io
import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_transforms import convert_to_rgb

from tests.data import pictures
from vitvlm.core.config import ConfigError
from vitvlm.data import operations
from vitvlm.data.operations import colour
from vitvlm.pretrained import WeightsError, preprocessing

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SQUARE = {"height": 224, "width": 224}
DO = {"do_resize": True, "do_normalize": True}
SCALE = {"do_rescale": True, "rescale_factor": 0.00392156862745098}

# The preprocessor_config.json of published checkpoints, and config.json's model_type.
PUBLISHED = {
    "google/vit-base-patch16-224": (
        "vit",
        {**DO, **HALF, **SCALE, "image_processor_type": "ViTImageProcessor", "resample": 2, "size": SQUARE},
    ),
    "google/vit-base-patch16-224-in21k, as it was": (
        "vit",
        {**DO, **HALF, "feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "size": 224},
    ),
    "google/vit-base-patch32-384, thin": ("vit", {**DO, **HALF, "size": 384}),
    "facebook/deit-base-distilled-patch16-224": (
        "deit",
        {
            **DO,
            **IMAGENET,
            "crop_size": 224,
            "do_center_crop": True,
            "feature_extractor_type": "DeiTFeatureExtractor",
            "resample": 3,
            "size": 256,
        },
    ),
    "microsoft/swin-tiny-patch4-window7-224": (
        "swin",
        {**DO, **IMAGENET, "feature_extractor_type": "ViTFeatureExtractor", "resample": 3, "size": 224},
    ),
    "facebook/vit-mae-base": (
        "vit_mae",
        {**DO, **IMAGENET, "feature_extractor_type": "ViTFeatureExtractor", "resample": 3, "size": 224},
    ),
    "facebook/dinov2-base": (
        "dinov2",
        {
            **DO,
            **IMAGENET,
            **SCALE,
            "crop_size": SQUARE,
            "do_center_crop": True,
            "do_convert_rgb": True,
            "image_processor_type": "BitImageProcessor",
            "resample": 3,
            "size": {"shortest_edge": 256},
        },
    ),
    "microsoft/resnet-50": (
        "resnet",
        {
            **DO,
            **IMAGENET,
            "crop_pct": 0.875,
            "feature_extractor_type": "ConvNextFeatureExtractor",
            "resample": 3,
            "size": 224,
        },
    ),
    "google/efficientnet-b0": (
        "efficientnet",
        {
            **DO,
            **SCALE,
            "crop_size": {"height": 289, "width": 289},
            "do_center_crop": False,
            "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "EfficientNetImageProcessor",
            "image_std": [0.47853944, 0.4732864, 0.47434163],
            "include_top": True,
            "resample": 0,
            "rescale_offset": False,
            "size": SQUARE,
        },
    ),
    "kakaobrain/align-base": (
        "align",
        {
            **DO,
            **HALF,
            "crop_size": {"height": 289, "width": 289},
            "do_center_crop": True,
            "do_rescale": True,
            "image_processor_type": "EfficientNetImageProcessor",
            "include_top": False,
            "resample": 2,
            "rescale_factor": 0.00784313725490196,
            "rescale_offset": True,
            "size": {"height": 346, "width": 346},
        },
    ),
    "openai/clip-vit-base-patch32": (
        "clip",
        {
            **DO,
            **CLIP,
            "crop_size": 224,
            "do_center_crop": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "resample": 3,
            "size": 224,
        },
    ),
    "openai/clip-vit-large-patch14-336, named fast": (
        "clip",
        {
            **DO,
            **CLIP,
            **SCALE,
            "crop_size": {"height": 336, "width": 336},
            "data_format": "channels_first",
            "device": None,
            "disable_grouping": None,
            "do_center_crop": True,
            "do_convert_rgb": True,
            "image_processor_type": "CLIPImageProcessorFast",
            "input_data_format": None,
            "resample": 3,
            "return_tensors": None,
            "size": {"shortest_edge": 336},
        },
    ),
    "google/siglip-base-patch16-224": (
        "siglip",
        {
            **DO,
            **HALF,
            **SCALE,
            "image_processor_type": "SiglipImageProcessor",
            "processor_class": "SiglipProcessor",
            "resample": 3,
            "size": SQUARE,
        },
    ),
    "microsoft/beit-base-patch16-224": (
        "vit",
        {
            **DO,
            **HALF,
            "crop_size": 224,
            "do_center_crop": False,
            "feature_extractor_type": "BeitFeatureExtractor",
            "reduce_labels": False,
            "resample": 2,
            "size": 224,
        },
    ),
    "facebook/convnext-base-384": (
        "resnet",
        {
            **DO,
            **IMAGENET,
            "crop_pct": None,
            "image_processor_type": "ConvNextImageProcessor",
            "resample": 3,
            "size": 384,
        },
    ),
}

# Every class by its defaults, and with what no published file has.
ODD = [
    *(
        (model_type, {})
        for model_type in ("vit", "deit", "swin", "vit_mae", "dinov2", "resnet", "efficientnet", "align")
    ),
    *((model_type, {}) for model_type in ("clip", "siglip", "blip-2", "instructblip")),
    ("vit", {"size": {"shortest_edge": 31}, "do_center_crop": True, "crop_size": 28, "resample": 5}),
    ("vit", {"size": [20, 33], "do_rescale": False}),
    ("vit", {"size": 20, "do_rescale": False, "do_normalize": False, "do_flip_channel_order": False}),
    ("vit", {"size": 20, "rescale_factor": 1 / 127.5, "resample": 4, "image_mean": 0.5, "image_std": 0.4}),
    ("vit", {"size": 20, "default_to_square": False, "do_center_crop": True, "crop_size": 20}),
    ("deit", {"size": 37, "crop_size": 31, "do_normalize": False}),
    ("deit", {"do_resize": False}),
    ("clip", {"size": 37, "do_center_crop": None}),
    ("clip", {"use_square_size": True, "crop_size": 223}),
    ("clip", {"size": {"height": 40, "width": 33}, "crop_size": {"height": 33, "width": 61}}),
    ("dinov2", {"size": 53, "crop_size": 60, "resample": 1}),
    ("siglip", {"size": 40, "resample": 0}),
    ("resnet", {"size": 31, "crop_pct": 0.9}),
    ("resnet", {"size": 31, "crop_pct": 1.1, "do_center_crop": True, "crop_size": 21}),
    ("resnet", {"size": {"shortest_edge": 400}}),
    ("efficientnet", {"size": 31, "do_normalize": False}),
    (
        "efficientnet",
        {"size": 31, "do_center_crop": True, "crop_size": 30, "do_rescale": False, "rescale_offset": True},
    ),
    ("align", {"size": 31, "rescale_offset": True, "include_top": None}),
]


def photograph(height: int, width: int, seed: int) -> Image.Image:
    """Makes an image with the traits of a photograph: large smooth parts, hard edges, and fine texture."""
    rng = np.random.default_rng(seed)
    pixels = pictures.pattern(height, width, seed=seed).astype(float)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(6):
        centre, radius = rng.uniform(0, (height, width)), rng.uniform(0.05, 0.3) * max(height, width)
        pixels[np.hypot(rows - centre[0], columns - centre[1]) < radius] = rng.uniform(0, 255, 3)
    pixels += 20 * np.sin(rows / 1.7 + columns / 2.3)[..., None] + rng.normal(0, 6, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photographs() -> dict[str, bytes]:
    """Makes JPEGs of six shapes, and PNGs that are not RGB."""
    jpegs = {
        "landscape": (427, 640),
        "portrait": (501, 333),
        "square": (300, 300),
        "thin": (2, 57),
        "small": (19, 23),
        "huge": (1707, 2560),
    }
    files = {
        name: pictures.encoded(photograph(*size, seed), "JPEG", quality=90)
        for seed, (name, size) in enumerate(jpegs.items())
    }
    whole = photograph(211, 300, 9)
    transparent = whole.convert("RGBA")
    transparent.putalpha(photograph(211, 300, 10).convert("L"))
    files |= {"grey": pictures.encoded(whole.convert("L"), "PNG"), "RGBA": pictures.encoded(transparent, "PNG")}
    return files | {"palette": pictures.encoded(whole.quantize(64), "PNG")}


def theirs(folder, model_type: str, described: dict) -> AutoImageProcessor:
    """Returns the image processor that `transformers` chooses for a folder with these configs."""
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return AutoImageProcessor.from_pretrained(folder, backend="pil")


def grey_levels_between(processor, text: str, photographs: dict[str, bytes]) -> float:
    """The largest difference between theirs and what the operations make, in grey levels of what goes in."""
    pipeline = operations.parse(text)
    _, std = colour.normalization(pipeline)
    differences = []
    for name, content in photographs.items():
        image = convert_to_rgb(Image.open(io.BytesIO(content)), return_numpy=False)
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
        found = pipeline({"image": content, "id": name})["image"]
        assert found.shape == expected.shape, name
        differences.append(255 * (np.abs(found - expected) * std).max())
    return max(differences)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name, tmp_path, photographs):
    model_type, described = PUBLISHED[name]
    text = preprocessing.operations(described, 3, {"model_type": model_type})
    assert grey_levels_between(theirs(tmp_path, model_type, described), text, photographs) < 0.01


@pytest.mark.parametrize(("model_type", "described"), ODD, ids=str)
def test_defaults_and_odd_settings(model_type, described, tmp_path, photographs):
    few = {name: content for name, content in photographs.items() if name != "huge"}
    text = preprocessing.operations(described, 3, {"model_type": model_type})
    assert grey_levels_between(theirs(tmp_path, model_type, described), text, few) < 0.01


@pytest.mark.parametrize("model_type", [*preprocessing.BY_MODEL_TYPE, "bert"])
@pytest.mark.parametrize(
    "text",
    [
        "decode(3)|resize((24, 31), 'bicubic')|normalize('imagenet')",
        "decode(3)|resize_small(31)|central_crop(28)|normalize((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))",
        "decode(3)|resize_small(20, 'lanczos')|central_crop((24, 31), 0)|normalize('unit')",
        "decode(3)|central_crop(28, 0)|normalize('half')",
        "decode(3)|resize(9, 'nearest')|normalize('half')|keep('name')",
    ],
)
def test_operations_written_for_transformers(model_type, text, tmp_path, photographs):
    """A model of any family, trained with these operations: the file that is saved with it."""
    described, differences = preprocessing.described(text, {"model_type": model_type})
    assert not differences
    few = {name: photographs[name] for name in ("portrait", "thin", "grey")}
    images = text.removesuffix("|keep('name')")
    assert grey_levels_between(theirs(tmp_path, "clip", described), images, few) < 0.01
    assert preprocessing.operations(described, 3, {}).count("|") == images.count("|")


def test_what_transformers_does_not_do():
    for text, message in [
        ("decode|resize_pad(8)|normalize", "resize_pad has no counterpart"),
        ("decode|resize_small(8)|central_crop(9, 255)|normalize", "a border of 255"),
        ("decode|flip|normalize", "flip does not fit"),
    ]:
        with pytest.raises(ConfigError, match=message):
            preprocessing.described(text, {})
    _, differences = preprocessing.described("decode|resize_small(9)|central_crop(8, rounding='even')|normalize", {})
    assert "half of an odd margin" in differences[0]


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"image_processor_type": "ViTImageProcessr"}, 'did you mean "ViTImageProcessor"'),
        ({"image_processor_type": "Pix2StructImageProcessor"}, "image_processor_type 'Pix2StructImageProcessor'"),
        ({"crop_pct": 0.9}, "crop_pct = 0.9: ViTImageProcessor has no such setting"),
        ({"do_resise": True}, 'do_resise = True: .* did you mean "do_resize"'),
        ({"do_thumbnail": True}, "do_thumbnail = True: ViTImageProcessor has no such setting"),
        ({"do_pad": True, "pad_size": 300}, "do_pad to 300"),
        ({"do_resize": "yes"}, "do_resize = 'yes'; write true or false"),
        ({"size": {"longest_edge": 3}}, r"size \{'longest_edge': 3\}; write a number, a shortest_edge"),
        ({"size": {"shortest_edge": 3, "longest_edge": 9}}, "size"),
        ({"size": 224.5}, "size 224.5"),
        ({"do_center_crop": True}, "do_center_crop without a crop_size"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "crop_size"),
        ({"resample": 9}, "resample 9; there is"),
        ({"rescale_factor": 0}, "rescale_factor 0; write a number above 0"),
        ({"image_mean": [0.5]}, r"image_mean \[0.5\]; write a number, or one for each of 3"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std .* must be above 0"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 9, "width": 9}}, "needs a number"),
    ],
)
def test_what_is_not_followed_is_named(described, message):
    with pytest.raises(WeightsError, match=rf"preprocessor_config\.json: .*{message}"):
        preprocessing.operations(described, 3, {"model_type": "vit"})


def test_a_file_that_names_no_class_of_a_model_without_its_own():
    with pytest.raises(WeightsError, match=r"names no image_processor_type, and none is known of .* 'bert'"):
        preprocessing.operations({}, 3, {"model_type": "bert"})
    assert preprocessing.operations({}, 3, {"image_processor_type": "BitImageProcessor"}).startswith(
        "decode(3)|resize_sm"
    )

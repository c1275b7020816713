"""Our two towers against CLIPModel of `transformers`, small and random, float32."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from huggingface import array, check_written_back, close, load, pixels, randomise, stacked
from safetensors.numpy import load_file, save_file
from towers import TEXT, VISION, check_both_towers, check_gradients, images
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from vitvlm import models, pretrained
from vitvlm.core.config import ConfigError
from vitvlm.data import operations

# Each text ends at another place: at its first 7, which fills it up too; or, by the older rule, at its largest id.
FIRST_EOS = np.array([[0, 9, 29, 7, 7, 7, 7], [0, 28, 5, 12, 3, 7, 7], [0, 7, 25, 7, 11, 7, 7]], np.int32)
LARGEST_ID = np.array([[0, 9, 4, 29, 2, 2, 2], [0, 28, 5, 12, 3, 29, 2], [29, 7, 25, 7, 11, 29, 2]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1, 1]], np.int32)
CASES = {
    "first_eos": (
        {"eos_token_id": 7, "hidden_act": "gelu", "layer_norm_eps": 1e-3},
        {"layer_norm_eps": 1e-2, "hidden_act": "gelu_new", "attention_dropout": 0.1},
        FIRST_EOS,
        None,
    ),
    "largest_id_padded": ({"eos_token_id": 2}, {}, LARGEST_ID, MASK),
}


def reference(text, vision):
    projection = {"projection_dim": 20}  # of the whole, and as published in the towers' configs too
    towers = {"text_config": TEXT | text | projection, "vision_config": VISION | vision | projection}
    config = CLIPConfig(**towers, **projection)
    theirs = CLIPModel._from_config(config, attn_implementation="eager")
    randomise(theirs)
    return theirs


@pytest.mark.parametrize("name", CASES)
def test_both_towers(name, tmp_path):
    text, vision, texts, mask = CASES[name]
    theirs = reference(text, vision)
    loaded = load(theirs, tmp_path / "theirs")
    check_both_towers(theirs, loaded, images(), texts, mask)
    check_written_back(theirs, loaded, tmp_path / "ours")


def infonce(logits):
    """Radford et al. 2021, figure 3."""
    return (
        sum(optax.softmax_cross_entropy_with_integer_labels(x, np.arange(len(x))).mean() for x in (logits, logits.T))
        / 2
    )


def test_gradients(tmp_path):
    theirs = reference({"eos_token_id": 7}, {})
    loaded = load(theirs, tmp_path / "theirs")
    check_gradients(theirs, loaded, images(), FIRST_EOS, infonce, tmp_path / "gradients")


def test_scanned_and_in_bfloat16(tmp_path):
    theirs = reference({"eos_token_id": 7}, {})
    theirs.save_pretrained(tmp_path)
    loaded = pretrained.load(tmp_path, scan=True)
    assert loaded.model.image.scan and loaded.model.text.scan
    expected = array(theirs.get_text_features(torch.from_numpy(FIRST_EOS)).pooler_output)
    close(encode_text(loaded, FIRST_EOS), expected / np.linalg.norm(expected, axis=1, keepdims=True), "scanned")
    model = pretrained.load(tmp_path, dtype=jnp.bfloat16).model
    assert model.image.dtype == model.text.dtype == jnp.bfloat16


def encode_text(loaded, texts):
    return jax.jit(functools.partial(loaded.model.apply, method=loaded.model.encode_text))(loaded.variables, texts)


def test_folders_of_the_hub(tmp_path):
    """Old files: buffers of numbers, towers' configs without what is the default, or under another name."""
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 20, "num_hidden_layers": 1}
    theirs = reference({"eos_token_id": 2, **sizes}, {"num_hidden_layers": 1})
    theirs.save_pretrained(tmp_path)
    tensors, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    ids = {"text_model": 9, "vision_model": 10}
    buffers = {f"{name}.embeddings.position_ids": np.arange(n, dtype=np.int64)[None] for name, n in ids.items()}
    save_file(tensors | buffers, tmp_path / "model.safetensors", {"format": "pt"})
    default = CLIPTextConfig().to_dict()
    short = {name: value for name, value in config["text_config"].items() if value != default[name]}
    assert not {"hidden_size", "num_attention_heads", "hidden_act", "layer_norm_eps"} & set(short)
    old = {
        "text_config": config["text_config"] | {"hidden_size": 9},
        "text_config_dict": short,
        "vision_config_dict": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(config | old))
    loaded = pretrained.load(tmp_path)
    assert (loaded.model.text.width, loaded.model.text.norm_eps, loaded.model.text.eot_id) == (512, 1e-5, None)
    expected = array(theirs.get_text_features(torch.from_numpy(LARGEST_ID)).pooler_output)
    close(encode_text(loaded, LARGEST_ID), expected / np.linalg.norm(expected, axis=1, keepdims=True), "embedding")
    check_written_back(theirs, loaded, tmp_path / "ours")


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_the_image_tower_alone(prefix, tmp_path):
    theirs = CLIPVisionModel._from_config(CLIPVisionConfig(**VISION), attn_implementation="eager")
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({prefix + name: x for name, x in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = pretrained.load(tmp_path)
    expected = theirs(pixels(images()), output_hidden_states=True)
    ours = jax.jit(lambda v, x: loaded.model.apply(v, x, capture=("hidden",)))(loaded.variables, images())
    close(ours.hidden, stacked(expected.hidden_states), "hidden")
    close(ours.pooled, array(expected.pooler_output), "pooled")
    check_written_back(theirs, loaded, tmp_path / "ours")


def test_the_text_tower_alone(tmp_path):
    theirs = CLIPTextModel(CLIPTextConfig(**TEXT, eos_token_id=7))
    randomise(theirs)
    loaded = load(theirs, tmp_path / "theirs")
    ours = jax.jit(loaded.model.apply)(loaded.variables, FIRST_EOS)
    close(ours.pooled, array(theirs(torch.from_numpy(FIRST_EOS)).pooler_output), "pooled")
    check_written_back(theirs, loaded, tmp_path / "ours")


@pytest.mark.parametrize("old", [False, True])
def test_preprocessing(old, tmp_path):
    """The shorter side to 12 pixels, then the middle; in old files each size is a single number."""
    reference({}, {}).save_pretrained(tmp_path)
    processor = CLIPImageProcessor(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    described = json.loads(processor.to_json_string())
    if old:
        described = described | {"size": 12, "crop_size": 12, "feature_extractor_type": "CLIPFeatureExtractor"}
        del described["image_processor_type"]
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    else:
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": described}))
    loaded = pretrained.load(tmp_path)
    assert loaded.preprocessing.startswith(
        "decode(3)|resize_small(12, 'bicubic')|central_crop((12, 12))|normalize((0.48"
    )
    photo = np.random.default_rng(0).integers(256, size=(31, 45, 3), dtype=np.uint8)
    found = operations.parse(loaded.preprocessing.removeprefix("decode(3)|"))({"image": photo, "id": "0"})["image"]
    expected = np.asarray(processor(photo, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    np.testing.assert_allclose(found, expected, atol=0.05)  # two resizers, both with antialias


def test_what_no_clip_is(tmp_path):
    tower = {"depth": 1, "heads": 2, "width": 8, "mlp_width": 8}
    image = {
        "name": "vit",
        "patch_size": 4,
        "image_size": 8,
        "pre_norm": True,
        "norm_pooled": True,
        "patch_bias": False,
    }
    text = {"name": "text", "vocab_size": 9, "length": 5}
    for change, message in [
        ({"bias_init": 0.0}, r"CLIP has no bias_init = 0\.0"),
        ({"image_projection": "mlp"}, "CLIP has no image_projection = 'mlp'"),
        ({"image": {"patch_bias": True}}, "CLIP has no image.patch_bias = True"),
        ({"text": {"causal": False}}, "CLIP has no text.causal = False"),
        ({"text": {"eot_id": 2}}, "CLIP has no text.eot_id = 2"),
    ]:
        towers = {
            "image": {**tower, **image, **change.pop("image", {})},
            "text": {**tower, **text, **change.pop("text", {})},
        }
        model = models.build("two_towers", **towers, embed_dim=4, scan=False, **change)
        inputs = np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 5), np.int32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        with pytest.raises(ConfigError, match=message):
            pretrained.save(pretrained.Pretrained(model, shapes, None, None, {}), tmp_path)

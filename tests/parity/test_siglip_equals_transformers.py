"""Our two towers against SiglipModel of `transformers`, small and random, float32."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from huggingface import array, check_written_back, close, load, pixels, randomise, stacked
from towers import TEXT, VISION, check_both_towers, check_gradients, images
from transformers import (
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vitvlm import models, pretrained
from vitvlm.core.config import ConfigError

TEXT = TEXT | {"projection_size": VISION["hidden_size"]}
TEXTS = np.random.default_rng(1).integers(30, size=(3, 9)).astype(np.int32)
MASK = np.array([[1] * 5 + [0] * 4, [1] * 9, [1, 0, 1] * 3], np.int32)
CASES = {
    "as_published": ({}, {}, None),
    "eps_activation_mask_and_pixels_left_over": (
        {"layer_norm_eps": 1e-3, "hidden_act": "gelu", "max_position_embeddings": 11, "attention_dropout": 0.1},
        {"layer_norm_eps": 1e-2, "hidden_act": "quick_gelu", "image_size": 14},
        MASK,
    ),
}


def reference(text, vision):
    theirs = SiglipModel._from_config(
        SiglipConfig(text_config=TEXT | text, vision_config=VISION | vision), attn_implementation="eager"
    )
    randomise(theirs)
    theirs.logit_scale.data += 1.0
    return theirs


@pytest.mark.parametrize("name", CASES)
def test_both_towers(name, tmp_path):
    text, vision, mask = CASES[name]
    theirs = reference(text, vision)
    loaded = load(theirs, tmp_path / "theirs")
    side = theirs.config.vision_config.image_size
    assert loaded.model.image.crop == bool(side % 4)
    check_both_towers(theirs, loaded, images(side), TEXTS, mask)
    check_written_back(theirs, loaded, tmp_path / "ours")


def sigmoid_loss(logits):
    """Zhai et al. 2023, equation 1: every image with every text, as one binary question each."""
    signs = 2 * jnp.eye(len(logits)) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits)


def test_gradients(tmp_path):
    theirs = reference({}, {})
    loaded = load(theirs, tmp_path / "theirs")
    check_gradients(theirs, loaded, images(), TEXTS, sigmoid_loss, tmp_path / "gradients")


def test_what_googles_configs_leave_out(tmp_path):
    """What has its default value is not in the towers' own configs."""
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1, "intermediate_size": 8}
    theirs = reference(sizes | {"projection_size": 768}, sizes)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, kind in (("text_config", SiglipTextConfig), ("vision_config", SiglipVisionConfig)):
        default = kind().to_dict()
        config[name] = {field: value for field, value in config[name].items() if value != default[field]}
        assert not {"hidden_size", "num_attention_heads", "hidden_act", "projection_size"} & set(config[name])
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = pretrained.load(tmp_path, scan=True)
    expected = theirs(input_ids=torch.from_numpy(TEXTS), pixel_values=pixels(images()))
    ours = jax.jit(loaded.model.apply)(loaded.variables, images(), TEXTS)
    close(ours.logits_per_image, array(expected.logits_per_image), "logits")


def test_the_image_tower_alone(tmp_path):
    theirs = SiglipVisionModel._from_config(SiglipVisionConfig(**VISION), attn_implementation="eager")
    randomise(theirs)
    loaded = load(theirs, tmp_path / "theirs")
    expected = theirs(pixels(images()), output_hidden_states=True)
    ours = jax.jit(lambda v, x: loaded.model.apply(v, x, capture=("hidden",)))(loaded.variables, images())
    close(ours.hidden, stacked(expected.hidden_states), "hidden")
    close(ours.pooled, array(expected.pooler_output), "pooled")
    check_written_back(theirs, loaded, tmp_path / "ours")


def test_the_text_tower_alone(tmp_path):
    theirs = SiglipTextModel(SiglipTextConfig(**TEXT))
    randomise(theirs)
    loaded = load(theirs, tmp_path / "theirs")
    ours = jax.jit(loaded.model.apply)(loaded.variables, TEXTS)
    close(ours.pooled, array(theirs(torch.from_numpy(TEXTS)).pooler_output), "pooled")
    check_written_back(theirs, loaded, tmp_path / "ours")


def test_preprocessing(tmp_path):
    reference({}, {}).save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": 12, "width": 12}).save_pretrained(tmp_path)
    expected = "decode(3)|resize((12, 12), 'bicubic')|normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))"
    assert pretrained.load(tmp_path).preprocessing == expected


def test_what_no_siglip_is(tmp_path):
    tower = {"depth": 1, "heads": 2, "width": 8, "mlp_width": 8}
    image = {"name": "vit", "patch_size": 4, "image_size": 8, "pool": "map", **tower}
    text = {"name": "text", "vocab_size": 9, "length": 5, "causal": False, "pool": "last", "projection": 8, **tower}
    model = {"image": image, "text": text, "embed_dim": 8, "bias_init": 0.0, "scan": False}
    model |= {"image_projection": "none", "text_projection": "none"}
    for change, message in [
        ({"text_projection": "linear"}, "SigLIP has no text_projection = 'linear'"),
        ({"image": image | {"pool": "gap"}}, "SigLIP has no image.pool = 'gap'"),
        ({"image": image | {"registers": 2}}, "SigLIP has no image.registers = 2"),
        ({"text": text | {"projection": None}}, "SigLIP has no text.projection = None"),
    ]:
        ours = models.build("two_towers", **model | change)
        inputs = np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 5), np.int32)
        shapes = jax.eval_shape(ours.init, jax.random.key(0), *inputs)
        with pytest.raises(ConfigError, match=message):
            pretrained.save(pretrained.Pretrained(ours, shapes, None, None, {}), tmp_path)

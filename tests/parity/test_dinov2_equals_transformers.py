"""Our ViT against the DINOv2 models of `transformers`, with registers and without, small and random, float32."""

import jax
import numpy as np
import pytest
from huggingface import array, check_written_back, close, load, pixels, randomise, stacked
from transformers import (
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)

from vitvlm import models, pretrained
from vitvlm.core.config import ConfigError

BASE = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": 16,
    "patch_size": 4,
    "layerscale_value": 0.3,
    "num_labels": 5,
}
# The reference, fields of its config, and the images' shape; another size than the config's is resampled by both,
# with antialias only where there are registers.
CASES = {
    "plain": (Dinov2Model, {}, (2, 16, 16, 3)),
    "swiglu_eps_larger_image": (
        Dinov2ForImageClassification,
        {"use_swiglu_ffn": True, "mlp_ratio": 4, "layer_norm_eps": 1e-3, "drop_path_rate": 0.1},
        (2, 20, 28, 3),
    ),
    "rectangular_patch_no_bias_one_channel": (
        Dinov2ForImageClassification,
        {"patch_size": (2, 4), "qkv_bias": False, "num_channels": 1, "hidden_act": "quick_gelu"},
        (1, 16, 16, 1),
    ),
    "registers_swiglu_smaller_image": (
        Dinov2WithRegistersModel,
        {"num_register_tokens": 3, "use_swiglu_ffn": True, "num_hidden_layers": 2},
        (2, 8, 12, 3),
    ),
    "registers_larger_image": (
        Dinov2WithRegistersForImageClassification,
        {"num_register_tokens": 1, "num_attention_heads": 3, "hidden_act": "gelu_new", "num_hidden_layers": 2},
        (1, 28, 20, 3),
    ),
}


def reference(kind, fields):
    theirs = kind(kind.config_class(**BASE | fields, attn_implementation="eager"))
    if theirs.base_model.embeddings.mask_token is not None:
        theirs.base_model.embeddings.mask_token.requires_grad_(False)  # stays zero: nothing of ours
    randomise(theirs)
    return theirs


@pytest.mark.parametrize("name", CASES)
def test_layers_attention_pooled_and_logits(name, tmp_path):
    kind, fields, shape = CASES[name]
    theirs = reference(kind, fields)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = theirs(pixels(images), output_hidden_states=True, output_attentions=True)
    last = theirs.base_model(pixels(images)).last_hidden_state
    loaded = load(theirs, tmp_path / "theirs")
    run = jax.jit(lambda variables, x: loaded.model.apply(variables, x, capture=("hidden", "attention")))
    ours = run(loaded.variables, images)
    close(ours.hidden, stacked(expected.hidden_states), "hidden")
    close(ours.attention, stacked(expected.attentions), "attention")
    R = ours.prefix.shape[1]
    close(ours.prefix, array(last[:, :R]), "CLS and registers")
    close(ours.tokens, array(last[:, R:]), "tokens")
    if "logits" in expected:
        assert ours.pooled.shape == (len(images), 2 * BASE["hidden_size"])
        close(ours.logits, array(expected.logits), "logits")
    else:
        close(ours.pooled, array(expected.pooler_output), "pooled")
    check_written_back(theirs, loaded, tmp_path / "ours")


def test_a_checkpoint_without_a_mask_token(tmp_path):
    theirs = reference(Dinov2Model, {"use_mask_token": False, "num_hidden_layers": 1})
    loaded = load(theirs, tmp_path)
    images = np.ones((1, 16, 16, 3), np.float32)
    ours = jax.jit(loaded.model.apply)(loaded.variables, images)
    close(ours.pooled, array(theirs(pixels(images)).pooler_output), "pooled")


def test_what_no_dinov2_is(tmp_path):
    sizes = {"width": 16, "depth": 1, "heads": 2, "patch_size": 4, "image_size": 8, "layer_scale": 1.0, "scan": False}
    for fields, message in [
        ({"mlp_width": 36}, "DINOv2 has no mlp_width = 36 at width 16: no whole mlp_ratio gives it"),
        ({"mlp_width": 32, "registers": 2}, "DINOv2 has no position_antialias = False"),
        ({"mlp_width": 32, "pool": "gap"}, "DINOv2 has no pool = 'gap'"),
    ]:
        model = models.build("vit", **sizes | fields)
        shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
        with pytest.raises(ConfigError, match=message):
            pretrained.save(pretrained.Pretrained(model, shapes, None, None, {}), tmp_path)

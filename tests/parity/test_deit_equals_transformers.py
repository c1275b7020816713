"""Our DeiT against those of `transformers`, small and with random weights, float32."""

import jax
import numpy as np
import pytest
from huggingface import array, check_written_back, close, load, pixels, randomise, stacked
from transformers import DeiTConfig, DeiTForImageClassification, DeiTForImageClassificationWithTeacher, DeiTModel

BASE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}
CASES = {
    "two_heads": (DeiTForImageClassificationWithTeacher, {}),
    "two_heads_non_square_no_bias": (
        DeiTForImageClassificationWithTeacher,
        {"image_size": (10, 15), "patch_size": 5, "qkv_bias": False, "layer_norm_eps": 1e-3, "hidden_act": "gelu_new"},
    ),
    "one_head_one_channel_batch_of_one": (
        DeiTForImageClassification,
        {"num_channels": 1, "hidden_act": "quick_gelu", "num_hidden_layers": 3, "layer_norm_eps": 1e-6},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_attention_and_logits(name, tmp_path):
    kind, fields = CASES[name]
    source = DeiTConfig(**BASE | fields, attn_implementation="eager")
    theirs = kind(source)
    randomise(theirs)
    h, w = source.image_size if isinstance(source.image_size, tuple) else (source.image_size, source.image_size)
    shape = (1 if "batch_of_one" in name else 2, h, w, source.num_channels)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = theirs(pixels(images), output_hidden_states=True, output_attentions=True)
    loaded = load(theirs, tmp_path / "theirs")
    run = jax.jit(lambda variables, x: loaded.model.apply(variables, x, capture=("hidden", "attention")))
    ours = run(loaded.variables, images)
    close(ours.hidden, stacked(expected.hidden_states), "hidden")
    close(ours.attention, stacked(expected.attentions), "attention")
    close(ours.logits, array(expected.logits), "logits")
    if kind is DeiTForImageClassificationWithTeacher:
        close(ours.cls_logits, array(expected.cls_logits), "CLS logits")
        close(ours.distillation_logits, array(expected.distillation_logits), "distillation logits")
    check_written_back(theirs, loaded, tmp_path / "ours")


@pytest.mark.parametrize("pooler", [True, False], ids=["pooler", "no_pooler"])
def test_encoder_alone_on_an_image_of_another_size(pooler, tmp_path):
    theirs = DeiTModel(DeiTConfig(**BASE), add_pooling_layer=pooler)
    randomise(theirs)
    images = np.random.default_rng(0).normal(size=(2, 12, 24, 3)).astype(np.float32)
    expected = theirs(pixels(images), interpolate_pos_encoding=True)
    loaded = load(theirs, tmp_path / "theirs")
    ours = jax.jit(loaded.model.apply)(loaded.variables, images)
    close(ours.prefix, array(expected.last_hidden_state[:, :2]), "CLS and distillation token")
    close(ours.tokens, array(expected.last_hidden_state[:, 2:]), "tokens")
    if pooler:
        close(ours.pooled, array(expected.pooler_output), "pooled")
    check_written_back(theirs, loaded, tmp_path / "ours", **({} if pooler else {"add_pooling_layer": False}))

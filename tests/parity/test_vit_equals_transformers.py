"""Our ViT against `transformers.ViTForImageClassification` and `ViTModel`, small and random, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from huggingface import array, check_written_back, close, close_trees, gradients, load, pixels, randomise, stacked
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from vitvlm import pretrained
from vitvlm.core import paths
from vitvlm.nn.stacking import stack_blocks

BASE = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}
CASES = {
    "plain": {},
    "non_square": {"image_size": (12, 20)},
    "patch_5_quick_gelu_eps": {
        "image_size": 15,
        "patch_size": 5,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-3,
    },
    "no_qkv_bias_one_channel": {"qkv_bias": False, "num_channels": 1, "hidden_act": "gelu_new"},
    "one_block_one_head": {"num_hidden_layers": 1, "num_attention_heads": 1},
    "one_patch_batch_of_one": {"image_size": 4, "hidden_act": "relu"},
}
BATCHES = {"one_patch_batch_of_one": 1}
SCANNED = ("plain", "non_square", "one_block_one_head")
RUNS = [(name, False) for name in CASES if name not in SCANNED[1:]] + [(name, True) for name in SCANNED]


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    """Images, labels, our model, and everything that transformers gives for them."""
    folder = tmp_path_factory.mktemp(request.param)
    source = ViTConfig(**BASE | CASES[request.param], attn_implementation="eager")
    theirs = ViTForImageClassification(source)
    randomise(theirs)
    h, w = source.image_size if isinstance(source.image_size, tuple) else (source.image_size, source.image_size)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCHES.get(request.param, 3), h, w, source.num_channels)).astype(np.float32)
    labels = rng.integers(5, size=len(images))
    output = theirs(pixels(images), labels=torch.from_numpy(labels), output_hidden_states=True, output_attentions=True)
    loaded = load(theirs, folder / "theirs")
    check_written_back(theirs, loaded, folder / "ours")
    output.loss.backward()
    return {
        "folder": folder / "theirs",
        "images": jnp.asarray(images),
        "labels": jnp.asarray(labels),
        "gradients": gradients(theirs, loaded, folder / "gradients"),
        "output": output,
    }


@pytest.mark.parametrize(
    "case, scan", RUNS, indirect=["case"], ids=lambda x: {True: "scanned", False: "looped"}.get(x, x)
)
def test_layers_attention_logits_and_gradients(case, scan):
    loaded = pretrained.load(case["folder"], scan=scan)

    def loss(params):
        logits = loaded.model.apply({"params": params}, case["images"]).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, case["labels"]).mean()

    @jax.jit
    def run(params):  # capturing takes another way through attention than training does: both are compared
        captured = loaded.model.apply({"params": params}, case["images"], capture=("hidden", "attention"))
        return captured, *jax.value_and_grad(loss)(params)

    ours, value, found = run(loaded.variables["params"])
    theirs = case["output"]
    close(ours.hidden, stacked(theirs.hidden_states), "hidden")
    close(ours.attention, stacked(theirs.attentions), "attention")
    close(ours.logits, array(theirs.logits), "logits")
    close(value, array(theirs.loss), "loss")
    expected = stack_blocks(case["gradients"]) if scan else case["gradients"]
    close_trees(paths.flatten(found), paths.flatten(expected))


@pytest.mark.parametrize("pooler", [True, False], ids=["pooler", "no_pooler"])
def test_encoder_alone(pooler, tmp_path):
    theirs = ViTModel(ViTConfig(**BASE, qkv_bias=pooler), add_pooling_layer=pooler)
    randomise(theirs)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    expected = theirs(pixels(images))
    loaded = load(theirs, tmp_path / "theirs")
    ours = jax.jit(loaded.model.apply)(loaded.variables, images)
    close(ours.tokens, array(expected.last_hidden_state[:, 1:]), "tokens")
    if pooler:
        close(ours.pooled, array(expected.pooler_output), "pooled")
    check_written_back(theirs, loaded, tmp_path / "ours", **({} if pooler else {"add_pooling_layer": False}))


def test_image_of_another_size(tmp_path):
    """transformers resamples learned positions (bicubic) when asked to interpolate them, from a square grid."""
    theirs = ViTForImageClassification(ViTConfig(**BASE, attn_implementation="eager"))
    randomise(theirs)
    images = np.random.default_rng(0).normal(size=(2, 20, 28, 3)).astype(np.float32)
    expected = theirs(pixels(images), interpolate_pos_encoding=True).logits
    loaded = load(theirs, tmp_path)
    close(jax.jit(loaded.model.apply)(loaded.variables, images).logits, array(expected), "logits")

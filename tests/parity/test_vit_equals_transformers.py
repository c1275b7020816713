"""Our ViT against `transformers.ViTForImageClassification`, small and with random weights, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from huggingface import array, randomise, saved, saved_gradients, stacked
from transformers import ViTConfig, ViTForImageClassification

from vitvlm import models
from vitvlm.core import paths
from vitvlm.nn.stack import stack_blocks
from vitvlm.pretrained.vit import vit_facts, vit_fields, vit_table

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


def close(ours, theirs, what: str) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4, rtol=1e-4, err_msg=what)


@pytest.fixture(scope="module")
def case(request):
    """Images, labels, our parameters in looped form, and everything that transformers gives for them."""
    source = ViTConfig(**BASE | CASES[request.param], attn_implementation="eager")
    theirs = ViTForImageClassification(source)
    randomise(theirs)
    h, w = source.image_size if isinstance(source.image_size, tuple) else (source.image_size, source.image_size)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCHES.get(request.param, 3), h, w, source.num_channels)).astype(np.float32)
    labels = rng.integers(5, size=len(images))
    output = theirs(
        torch.from_numpy(images.transpose(0, 3, 1, 2)),
        labels=torch.from_numpy(labels),
        output_hidden_states=True,
        output_attentions=True,
    )
    tensors, config = saved(theirs)
    output.loss.backward()
    table, facts = vit_table(config), vit_facts(config)
    return {
        "fields": vit_fields(config, tensors),
        "images": jnp.asarray(images),
        "labels": jnp.asarray(labels),
        "params": table.read(tensors, facts),
        "gradients": table.read(saved_gradients(theirs), facts),
        "output": output,
        "tensors": tensors,
        "write": lambda params: table.write(params, facts),
    }


@pytest.mark.parametrize(
    "case, scan", RUNS, indirect=["case"], ids=lambda x: {True: "scanned", False: "looped"}.get(x, x)
)
def test_layers_attention_logits_and_gradients(case, scan):
    model = models.build("vit", **case["fields"], scan=scan)
    convert = stack_blocks if scan else lambda params: params

    def loss(params):
        logits = model.apply({"params": params}, case["images"]).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, case["labels"]).mean()

    @jax.jit
    def run(params):  # capturing takes another way through attention than training does: both are compared
        captured = model.apply({"params": params}, case["images"], capture=("hidden", "attention"))
        return captured, *jax.value_and_grad(loss)(params)

    ours, value, gradients = run(convert(case["params"]))
    theirs = case["output"]
    close(ours.hidden, stacked(theirs.hidden_states), "hidden")
    close(ours.attention, stacked(theirs.attentions), "attention")
    close(ours.logits, array(theirs.logits), "logits")
    close(value, array(theirs.loss), "loss")
    expected = paths.flatten(convert(case["gradients"]))
    assert set(expected) == set(paths.flatten(gradients))
    for path, gradient in paths.flatten(gradients).items():
        close(gradient, expected[path], path)


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_table_writes_what_it_reads(case):
    written = case["write"](case["params"])
    assert written.keys() == case["tensors"].keys()
    for name, tensor in case["tensors"].items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)


def test_image_of_another_size():
    """transformers resamples learned positions (bicubic) when asked to interpolate them, from a square grid."""
    theirs = ViTForImageClassification(ViTConfig(**BASE, attn_implementation="eager"))
    randomise(theirs)
    images = np.random.default_rng(0).normal(size=(2, 20, 28, 3)).astype(np.float32)
    expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)), interpolate_pos_encoding=True).logits
    tensors, config = saved(theirs)
    model = models.build("vit", **vit_fields(config, tensors))
    params = stack_blocks(vit_table(config).read(tensors, vit_facts(config)))
    close(jax.jit(model.apply)({"params": params}, images).logits, array(expected), "logits")

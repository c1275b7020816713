"""Language models over eight devices compute what one does, with no more traffic than Megatron's (see test_devices.py).

The loss is the chunked one, so its vocabulary lies split over devices too.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten
from vitvlm.objectives import next_token
from vitvlm.training import heads, sharding

assert jax.device_count() == 8

B, L, S, VOCAB = 8, 6, 5, 32
SIZES = {"width": 16, "depth": 2, "heads": 4, "mlp_width": 32, "vocab_size": VOCAB}
LLAMA = SIZES | {"length": 8, "kv_heads": 2}
GEMMA = LLAMA | {
    "pattern": ("local", "global"), "local": 3, "norms": "sandwich", "norm": "rms_zero_centred", "tied": True,
    "logit_soft_cap": 2.0, "soft_cap": 3.0, "qk_norm": True,
}  # fmt: skip
GPT2 = SIZES | {
    "length": 8, "positions": "learned", "norm": "layer", "mlp": "plain", "qkv_bias": True, "out_bias": True,
    "mlp_bias": True, "vocab_size": 33, "tied": True, "head_bias": True,
}  # fmt: skip
MODELS = {
    "LLaMA": ("decoder", LLAMA),
    "Gemma": ("decoder", GEMMA),
    "GPT-2": ("decoder", GPT2),  # of an odd vocabulary, which stays whole
    "T5": ("t5", SIZES),
    "Flan-T5": ("t5", SIZES | {"mlp": "gated", "tied": False, "scale_logits": False, "scan": False}),
    "BERT": ("bert_decoder", SIZES | {"length": 8, "context_width": 12}),
}
WHOLE_KEYS = [[".*(attention|cross)/(key|value)/.*", "replicate"], [".*", "tensor"]]
LAYOUTS = {
    "fsdp 8": ({"fsdp": 8}, "fsdp"),
    "data 4, tensor 2": ({"data": 4, "tensor": 2}, "tensor"),
    "data 2, tensor 4": ({"data": 2, "tensor": 4}, "tensor"),
    "data 2, tensor 4, whole keys": ({"data": 2, "tensor": 4}, WHOLE_KEYS),
    "data 2, fsdp 2, tensor 2": ({"data": 2, "fsdp": 2, "tensor": 2}, "fsdp+tensor"),
}
RNG = np.random.default_rng(0)
BATCH = {
    "text_tokens": RNG.integers(32, size=(B, L)),
    "text_mask": (np.arange(L) < RNG.integers(2, L + 1, size=(B, 1))).astype(np.int32),
    "source": RNG.integers(32, size=(B, S)),
    "context": RNG.normal(size=(B, S, 12)).astype(np.float32),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(next_token, "TOKENS", 16)
    monkeypatch.setattr(next_token, "WORDS", 8)


@functools.cache
def build(name):
    kind, fields = MODELS[name]
    return models.build(kind, **fields)


def loss(name, variables, batch):
    model, texts, mask = build(name), batch["text_tokens"], batch["text_mask"]
    if MODELS[name][0] == "t5":
        out = model.apply(variables, batch["source"], decoder_tokens=model.shifted(texts), logits="none")
        labels, real = texts, mask
    else:
        given = {"context": batch["context"]} if MODELS[name][0] == "bert_decoder" else {}
        out = model.apply(variables, texts, mask, logits="none", **given)
        out, labels, real = out.replace(tokens=out.tokens[:, :-1]), texts[:, 1:], mask[:, 1:]
    head = {"scale": out.logit_scale, "soft_cap": out.logit_soft_cap}
    each = next_token.cross_entropy(out.tokens, out.head_kernel, labels, out.head_bias, **head)
    return jnp.sum(each * real) / real.sum()


@functools.cache
def make_params(name):
    shapes = jax.eval_shape(build(name).init, jax.random.key(0), BATCH["text_tokens"])["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def gradient(name, mesh=None):
    def run(variables, batch):
        return loss(name, variables, batch)

    run = run if mesh is None else sharding.keep_examples_split(run, mesh)
    return jax.value_and_grad(lambda params, batch: run({"params": params}, batch))


@functools.cache
def on_one_device(name):
    return jax.device_get(jax.jit(gradient(name))(make_params(name), BATCH))


def compile_layout(name, layout):
    axes, by = LAYOUTS[layout]
    mesh = sharding.make_mesh(axes)
    places = sharding.shardings(make_params(name), by, mesh)
    heads.check_heads(heads.heads_of(build(name).init, jax.random.key(0), BATCH["text_tokens"]), places)
    how = {"in_shardings": (places, sharding.batch_sharding(mesh)), "out_shardings": (None, places)}
    compiled = jax.jit(gradient(name, mesh), **how).lower(make_params(name), BATCH).compile()
    return compiled, (jax.device_put(make_params(name), places), sharding.put_batch(BATCH, mesh))


def gathered(compiled):
    """Shapes of what travels in a compiled program but for sums over devices."""
    pattern = r"= \(?\w+\[([\d,]*)\][^=]*? (?:all-gather|all-to-all|collective-permute)(?:-start)?\("
    return {tuple(map(int, shape.split(","))) for shape in re.findall(pattern, compiled.as_text())}


CASES = [("LLaMA", layout) for layout in LAYOUTS if layout != "data 2, tensor 4"]
CASES += [(name, "data 2, fsdp 2, tensor 2") for name in MODELS if name != "LLaMA"]
CASES += [("T5", "data 2, tensor 4"), ("BERT", "data 2, tensor 4"), ("Gemma", "data 4, tensor 2")]


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_loss_and_gradients_equal_one_device(name, layout):
    compiled, arguments = compile_layout(name, layout)
    (value, gradients), (expected_value, expected) = jax.device_get(compiled(*arguments)), on_one_device(name)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    found = flatten(gradients)
    for path, leaf in flatten(expected).items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-5, err_msg=path)
    if "fsdp" not in layout:  # Megatron sums, and gathers nothing; but for the gradients of what rules keep whole
        assert gathered(compiled) <= ({(2, 16, 8)} if "whole keys" in layout else set())


def test_fewer_heads_of_keys_than_devices_are_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match=r"key/kernel': 2 heads of keys and values cannot be split over tensor = 4"):
        compile_layout("LLaMA", "data 2, tensor 4")

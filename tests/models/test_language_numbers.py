"""Language models in half precision, rematerialised, scanned and looped; losses that never hold a large vocabulary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.paths import flatten
from vitvlm.nn.stacking import periods, stack_blocks, unstack_blocks
from vitvlm.objectives import next_token

B, L, VOCAB = 2, 5, 11
SIZES = {"width": 16, "depth": 2, "heads": 4, "mlp_width": 24, "vocab_size": VOCAB}
GEMMA = {
    "length": 8, "kv_heads": 2, "pattern": ("local", "global"), "local": 3, "norms": "sandwich", "soft_cap": 3.0,
    "norm": "rms_zero_centred", "tied": True, "logit_soft_cap": 2.0, "qk_norm": True, "scale_embed": True,
}  # fmt: skip
OPT = {"length": 8, "positions": "learned", "norm": "layer", "mlp": "plain", "qkv_bias": True, "head_bias": True}
MODELS = {
    "LLaMA": ("decoder", {"length": 8, "kv_heads": 2}),
    "Gemma": ("decoder", GEMMA),
    "OPT": ("decoder", OPT),
    "T5": ("t5", {}),
    "Flan-T5": ("t5", {"mlp": "gated", "activation": "gelu_tanh", "tied": False, "scale_logits": False}),
    "BERT": ("bert_decoder", {"length": 8}),
}
TEXTS = np.random.default_rng(0).integers(VOCAB, size=(B, L))


def build(name, **fields):
    kind, own = MODELS[name]
    return models.build(kind, **SIZES | own | fields)


@functools.cache
def variables(name):
    shapes = jax.eval_shape(build(name).init, jax.random.key(0), TEXTS)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def loss(model, variables, texts=TEXTS):
    """The mean over all tokens but the first, in chunks."""
    given = {"decoder_tokens": texts} if type(model).__name__ == "T5" else {}
    out = model.apply(variables, texts, logits="none", **given)
    head = (out.head_kernel, texts[:, 1:], out.head_bias)
    how = {"scale": out.logit_scale, "soft_cap": out.logit_soft_cap}
    return next_token.cross_entropy(out.tokens[:, :-1], *head, **how).mean()


@functools.cache
def gradients(name, **fields):
    """Loss and gradients of looped parameters."""
    model = build(name, **fields)
    found, tree = jax.jit(jax.value_and_grad(functools.partial(loss, model)))(variables(name))
    return found, flatten(unstack_blocks(tree["params"]))


@pytest.mark.parametrize("remat", ["full", "dots", "all_dots"])
@pytest.mark.parametrize("name", ["Gemma", "T5", "BERT"])
def test_rematerialised_gradients_are_the_same(name, remat):
    (value, found), (expected_value, expected) = gradients(name, remat=remat), gradients(name)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", MODELS)
def test_scanned_and_looped_layers_are_the_same(name):
    model, scanned = build(name, scan=False), variables(name)["params"]
    looped = unstack_blocks(scanned)
    value, tree = jax.jit(jax.value_and_grad(functools.partial(loss, model)))({"params": looped})
    expected_value, expected = gradients(name)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for path, leaf in flatten(tree["params"]).items():
        np.testing.assert_allclose(expected[path], leaf, atol=1e-5, err_msg=path)
    again = stack_blocks(looped, periods(flatten(scanned)))
    jax.tree.map(np.testing.assert_array_equal, again, scanned)


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_is_near_and_stays_half(name):
    """Computed in bfloat16 from parameters of either precision: outputs and caches are so too, gradients as stored."""
    expected = jax.jit(build(name).apply)(variables(name), TEXTS).logits
    scale = float(np.abs(expected).max())
    for stored in (jnp.float32, jnp.bfloat16):
        model = build(name, dtype=jnp.bfloat16, param_dtype=stored)
        own = jax.tree.map(lambda leaf, stored=stored: jnp.asarray(leaf, stored), variables(name))
        made = jax.eval_shape(model.init, jax.random.key(0), TEXTS)
        assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(stored)}
        out = jax.jit(model.apply)(own, TEXTS)
        assert out.logits.dtype == out.tokens.dtype == jnp.bfloat16
        np.testing.assert_allclose(out.logits.astype(jnp.float32), expected, atol=0.1 * scale)
        value, tree = jax.jit(jax.value_and_grad(functools.partial(loss, model)))(own)
        assert value.dtype == jnp.float32 and abs(value - gradients(name)[0]) < 0.05
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(stored)}
        norms = [np.linalg.norm(np.concatenate([np.ravel(np.float32(x)) for x in flat.values()])) for flat in (
            flatten(unstack_blocks(tree["params"])), gradients(name)[1])]  # fmt: skip
        np.testing.assert_allclose(*norms, rtol=0.1)
    cache = model.empty_cache(B, L)["attention"]
    assert {leaf.dtype for leaf in jax.tree.leaves(cache) if leaf.ndim > 1} == {jnp.dtype(jnp.bfloat16)}


LARGE = 256_000


@pytest.mark.parametrize("name", ["Gemma", "OPT", "T5", "Flan-T5"])
def test_a_vocabulary_of_256_000_is_never_held_in_logits(name):
    """The training loss with tied heads, Gemma's cap, T5's scaling and a bias holds no [B, L, V], and less memory."""
    length = 64
    fields = {"length": length} if MODELS[name][0] == "decoder" else {}
    model = build(name, vocab_size=LARGE, **fields)
    texts = jax.ShapeDtypeStruct((2, length), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), texts)
    compiled = jax.jit(jax.value_and_grad(functools.partial(loss, model))).lower(shapes, texts).compile()
    text = compiled.as_text()
    for tokens in (length, length - 1, 2 * length, 2 * (length - 1)):
        assert f"[2,{tokens},{LARGE}]" not in text and f"[{tokens},{LARGE}]" not in text
    logits, table = 2 * (length - 1) * LARGE * 4, LARGE * 16 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < logits / 4 + 6 * table
    whole = functools.partial(whole_loss, model)
    dense = jax.jit(jax.value_and_grad(whole)).lower(shapes, texts).compile()
    assert f",{LARGE}]" in dense.as_text()
    assert dense.memory_analysis().temp_size_in_bytes > logits


def whole_loss(model, variables, texts):
    given = {"decoder_tokens": texts} if type(model).__name__ == "T5" else {}
    logits = model.apply(variables, texts, **given).logits[:, :-1]
    own = jnp.take_along_axis(logits, texts[:, 1:, None], axis=2)[..., 0]
    return (jax.nn.logsumexp(logits, axis=2) - own).mean()

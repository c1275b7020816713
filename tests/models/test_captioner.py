"""CoCa: what is pooled and decoded, what each token and query looks at, and what cannot be built."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import make_images

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.nn.stacking import stack_blocks

SIZES = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12}
IMAGE = {"name": "vit", "patch_size": 4, "image_size": (8, 12), "pool": "cls", **SIZES}
TEXT = {"name": "text", "vocab_size": 20, "length": 6, "pool": "cls", "norm_pooled": True, **SIZES}
DECODER = {"decoder_depth": 2, "decoder_heads": 2, "queries": 5, "pool_heads": 2}
TEXTS = jnp.array([[1, 4, 9, 2, 0, 0], [1, 9, 3, 15, 7, 2]], jnp.int32)
IMAGES = make_images(2, 8, 12, 3)


def a_model(**fields):
    return models.build("coca", **{"image": IMAGE, "text": TEXT, "embed_dim": 6, "scan": False, **DECODER, **fields})


def make_params(model):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES, TEXTS)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), shapes)


@functools.cache
def answer(**fields):
    model = a_model(**fields)
    run = functools.partial(model.apply, capture=("hidden", "attention"))
    return jax.jit(run)(make_params(model), IMAGES, TEXTS)


def looks(attention):
    """Mask [B, queries, keys] of the keys that each query attends to, the same in all layers and heads."""
    seen = np.asarray(attention) > 0
    assert (seen.all(axis=(0, 2)) == seen.any(axis=(0, 2))).all()
    return seen.all(axis=(0, 2))


def test_what_the_cls_token_and_the_decoder_look_at():
    output = answer(pad_id=0)
    seen = looks(output.text.attention)
    np.testing.assert_array_equal(seen[0, -1], [1, 1, 1, 1, 0, 0, 1])
    np.testing.assert_array_equal(seen[1], np.tri(7))
    np.testing.assert_array_equal(looks(output.decoder_attention)[0], np.tri(6))
    assert looks(output.cross_attention).all() and output.cross_attention.shape == (2, 2, 2, 6, 4)
    assert output.text.hidden.shape == (3, 2, 7, 8) and output.text.tokens.shape == (2, 6, 8)
    np.testing.assert_allclose(output.text.tokens, output.text.hidden[-1][:, :6], atol=1e-6)  # no norm


def test_a_late_mask():
    """open_clip's: one token late, so the first token of padding is seen, and CLS only after a text without any."""
    seen = looks(answer(pad_id=0, text=frozen(TEXT | {"late_mask": True})).text.attention)
    np.testing.assert_array_equal(seen[0, -1], [1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(seen[1], np.tri(7))


class frozen(dict):
    """A dictionary that a cache can hold."""

    def __hash__(self):
        return hash(tuple(sorted(self.items())))


@pytest.mark.parametrize(
    ("pooling", "tokens", "pooled"), [("joint", 4, 6), ("parallel", 5, 6), ("cascade", 5, 6), ("none", 6, 8)]
)
def test_poolings(pooling, tokens, pooled):
    output = answer(pooling=pooling)
    params = make_params(a_model(pooling=pooling))["params"]
    assert params["project_image"]["out"]["kernel"].shape == (pooled, 6)
    assert output.image_tokens.shape == (2, tokens, 8 if pooling == "none" else 6)
    assert output.logits.shape == (2, 6, 20)
    if pooling == "none":
        assert output.pool_attention is None
        np.testing.assert_array_equal(output.image_tokens, output.image.tokens)
    else:
        assert output.pool_attention.shape == (2, 2, 5, 7)  # CLS and 6 patches
        np.testing.assert_allclose(output.pool_attention.sum(axis=-1), 1, atol=1e-5)
    if pooling in ("parallel", "cascade"):
        assert params["pool_one"]["context_norm"]["scale"].shape == ({"parallel": 8, "cascade": 6}[pooling],)


def test_every_part_has_a_gradient_of_the_caption_or_the_embedding():
    model = a_model(pad_id=0)

    def loss(variables):
        output = model.apply(variables, IMAGES, TEXTS)
        return jnp.sum(output.logits[:, 2, 3]) + jnp.sum(output.logits_per_image[0])

    sharp = jax.tree.map(lambda leaf: 2 * leaf, make_params(model))  # else all tokens are looked at alike
    gradients = jax.jit(jax.grad(loss))(sharp)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        of_key_bias = "'key']['bias'" in name  # one bias of all keys changes no softmax
        assert (np.abs(leaf).max() > 1e-5) != of_key_bias, name


def test_scanned_and_by_its_methods():
    looped, expected = a_model(pad_id=0), answer(pad_id=0)
    scanned, variables = a_model(pad_id=0, scan=True, remat="dots"), make_params(looped)
    stacked = {"params": stack_blocks(variables["params"])}
    run = jax.jit(functools.partial(scanned.apply, capture=("attention",)))
    output = run(stacked, IMAGES, TEXTS)
    np.testing.assert_allclose(output.logits, expected.logits, atol=1e-5)
    np.testing.assert_allclose(output.cross_attention, expected.cross_attention, atol=1e-5)
    for method, inputs, wanted in [
        ("encode_image", (IMAGES,), expected.image_embedding),
        ("encode_text", (TEXTS,), expected.text_embedding),
        ("encode_image_tokens", (IMAGES,), expected.image_tokens),
    ]:
        found = jax.jit(functools.partial(scanned.apply, method=getattr(scanned, method)))(stacked, *inputs)
        np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=method)
    decoded = jax.jit(functools.partial(scanned.apply, method=scanned.decode))(stacked, expected.image_tokens, TEXTS)
    np.testing.assert_allclose(decoded[TEXTS > 0], expected.logits[TEXTS > 0], atol=1e-5)


def test_a_caption_is_the_likeliest_next_token_each_time():
    model = a_model(pad_id=0)
    variables = make_params(model)
    run = jax.jit(model.apply)
    found = jax.jit(lambda v, x: model.apply(v, x, start=1, end=2, length=6, method=model.caption))(variables, IMAGES)
    text = np.zeros((2, 6), np.int32)
    text[:, 0] = 1
    for place in range(5):
        text[:, place + 1] = run(variables, IMAGES, text).logits[:, place].argmax(axis=1)
    ends = np.cumsum(np.cumsum(text == 2, axis=1), axis=1) > 1
    np.testing.assert_array_equal(found, np.where(ends, 0, text))
    end = int(text[0, 2])  # now it ends there, at the latest
    ended = jax.jit(lambda v, x: model.apply(v, x, start=1, end=end, length=6, method=model.caption))(variables, IMAGES)
    first = list(text[0]).index(end)
    np.testing.assert_array_equal(ended[0], [*text[0, : first + 1], *[0] * (5 - first)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "jiont"}, r'no pooling \'jiont\'.*"?joint'),
        ({"queries": 1}, r"model\.queries: 1"),
        ({"text": {**TEXT, "causal": False}}, r"model\.text\.causal: False"),
        ({"text": {**TEXT, "pool": "last", "late_mask": True}}, r"model\.late_mask"),
        ({"text": None}, r"model\.text: missing"),
        ({"decoder_width": 3}, "decoder_width"),
        ({"variant": "B/23"}, r"no variant 'B/23'"),
    ],
)
def test_what_cannot_be_built(fields, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(a_model(**fields).init, jax.random.key(0), IMAGES, TEXTS)


def test_another_number_of_texts_than_of_images():
    with pytest.raises(ValueError, match="2 images and 1 texts: the decoder needs a text per image"):
        jax.eval_shape(a_model().init, jax.random.key(0), IMAGES, TEXTS[:1])

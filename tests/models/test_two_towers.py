"""The text transformer, and two towers: what is looked at, what is pooled, and how towers are put together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import fast_key, make_images, make_variables

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.nn.stacking import unstack_blocks

TEXT = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12, "vocab_size": 20, "length": 6}
IMAGE = {"width": 12, "depth": 1, "heads": 3, "mlp_width": 8, "patch_size": 4, "image_size": 8}
TOWERS = {"image": {"name": "vit", **IMAGE}, "text": {"name": "text", **TEXT}, "embed_dim": 5}
TEXTS = jnp.array([[0, 4, 9, 3, 9, 1], [0, 9, 2, 15, 1, 1]], jnp.int32)


def shapes_of(model, *inputs):
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)


def make_params(model, *inputs):
    """Random normal numbers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2), shapes_of(model, *inputs))


def encode(fields, *inputs, **arguments):
    model = models.build("text", **TEXT | fields)
    return jax.jit(functools.partial(model.apply, **arguments))(make_params(model, TEXTS), *inputs)


def test_what_a_token_looks_at():
    mask = jnp.array([[1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    capture = {"capture": ("hidden", "attention")}
    causal = encode({}, TEXTS, mask, **capture)
    assert causal.hidden.shape == (3, 2, 6, 8) and causal.attention.shape == (2, 2, 2, 6, 6)
    seen = np.asarray(causal.attention > 0).all(axis=(0, 2))
    np.testing.assert_array_equal(seen[0], np.tri(6, dtype=bool) & (np.asarray(mask[0]) == 1))
    np.testing.assert_array_equal(seen[1], np.tri(6, dtype=bool))
    both_ways = encode({"causal": False}, TEXTS, mask == 1, **capture)
    np.testing.assert_array_equal(np.asarray(both_ways.attention[:, 0] > 0).all(axis=(0, 1, 2)), mask[0] == 1)
    assert (encode({"causal": False}, TEXTS, **capture).attention > 0).all()


def test_a_shorter_text_is_the_beginning_of_a_longer_one():
    whole, part = encode({}, TEXTS), encode({}, TEXTS[:, :4])
    np.testing.assert_allclose(part.tokens, whole.tokens[:, :4], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "places"),
    [
        ({"eot_id": 9}, (2, 1)),
        ({"eot_id": None}, (2, 3)),
        ({"eot_id": 3}, (3, 0)),
        ({"pool": "last"}, (5, 5)),
    ],
)
def test_the_pooled_token(fields, places):
    encoded = encode(fields, TEXTS)
    np.testing.assert_array_equal(encoded.pooled, encoded.tokens[jnp.arange(2), jnp.array(places)])


def test_scanned_and_rematerialised_blocks_are_the_looped_ones():
    scanned = models.build("two_towers", **TOWERS, scan=True, remat="full")
    looped = models.build("two_towers", **TOWERS, scan=False)
    images = make_images(2, 8, 8, 3)
    variables = make_params(scanned, images, TEXTS)
    apart = {"params": unstack_blocks(variables["params"])}

    def loss(model, variables):
        return jnp.square(model.apply(variables, images, TEXTS).logits_per_image).mean()

    found = jax.jit(jax.grad(functools.partial(loss, scanned)))(variables)
    expected = jax.jit(jax.grad(functools.partial(loss, looped)))(apart)
    found = {"params": unstack_blocks(found["params"])}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), found, expected)


def test_embeddings_logits_and_the_methods():
    fields = {"image_projection": "mlp", "scale_init": 10.0, "bias_init": -10.0}
    model = models.build("two_towers", **TOWERS | fields)
    images = make_images(3, 8, 8, 3)
    variables = jax.jit(model.init)(fast_key(0), images, TEXTS)
    both = jax.jit(model.apply)(variables, images, TEXTS)
    assert (both.image_embedding.shape, both.text_embedding.shape) == ((3, 5), (2, 5))
    np.testing.assert_allclose(jnp.linalg.norm(both.image_embedding, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose((both.scale, both.bias), (10, -10), rtol=1e-6)
    cosines = both.image_embedding @ both.text_embedding.T
    np.testing.assert_allclose(both.logits_per_image, 10 * cosines - 10, atol=1e-5)
    image = jax.jit(functools.partial(model.apply, method=model.encode_image))(variables, images)
    text = jax.jit(functools.partial(model.apply, method=model.encode_text))(variables, TEXTS)
    np.testing.assert_allclose(image, both.image_embedding, atol=1e-6)
    np.testing.assert_allclose(text, both.text_embedding, atol=1e-6)
    assert set(variables["params"]) == {"image", "text", "project_image", "project_text", "log_scale", "bias"}


def test_dtypes():
    """Towers and projections in bfloat16, embeddings and logits in float32."""
    model = models.build("two_towers", **TOWERS, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    images = make_images(2, 8, 8, 3)
    variables = shapes_of(model, images, TEXTS)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.bfloat16)}
    output = jax.eval_shape(model.apply, variables, images, TEXTS)
    assert output.image.tokens.dtype == output.text.tokens.dtype == output.text.pooled.dtype == jnp.bfloat16
    assert output.image_embedding.dtype == output.logits_per_image.dtype == output.scale.dtype == jnp.float32


def test_any_encoder_is_a_tower():
    resnet = {"name": "resnet", "widths": (8, 12), "depths": (1, 1), "stem_width": 4}
    model = models.build("two_towers", **TOWERS | {"image": resnet})
    images = make_images(2, 32, 32, 3)
    variables = shapes_of(model, images, TEXTS)
    output = jax.eval_shape(model.apply, variables, images, TEXTS)
    assert output.logits_per_image.shape == (2, 2) and "batch_stats" in variables
    scanned = models.build("two_towers", **TOWERS | {"image": resnet}, scan=True, dtype=jnp.bfloat16)
    assert scanned.text.scan and scanned.image.dtype == scanned.text.dtype == jnp.bfloat16


def test_a_tower_goes_before_what_both_are_told():
    text = {**TOWERS["text"], "scan": False}
    model = models.build("two_towers", **TOWERS | {"text": text}, scan=True, remat="full")
    assert (model.image.scan, model.text.scan, model.image.remat, model.text.remat) == (True, False, "full", "full")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_projection": "liner"}, r'model\.image_projection: no projection \'liner\'; did you mean "linear"'),
        ({"text_projection": "none"}, r'model\.text_projection: "none", but the tower has 8 numbers'),
        ({"embed_dims": 5}, r'model\.embed_dims: no such field; did you mean "embed_dim"'),
        ({"text": {"name": "text", **TEXT, "heights": 2}}, r"model\.text\.heights: no such field"),
        ({"text": {**TEXT}}, r"model\.text\.name: missing"),
        ({"text": None}, r"model\.text: missing"),
        ({"text": {"name": "text", **TEXT, "pool": "eos"}}, r'no pooling \'eos\'; did you mean "eot"'),
        ({"variant": "CLIP-B/31"}, r'did you mean "CLIP-B/32"'),
    ],
)
def test_what_is_wrong_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        shapes_of(models.build("two_towers", **TOWERS | fields), make_images(2, 8, 8, 3), TEXTS)


def test_texts_that_are_too_long():
    with pytest.raises(ValueError, match="texts of 7 tokens; there are 6 positions"):
        encode({}, jnp.zeros((1, 7), jnp.int32))


def test_a_variant_with_something_changed():
    model = models.build("two_towers", variant="CLIP-B/32", image={"patch_size": 16}, text={"depth": 2}, embed_dim=64)
    assert (model.image.patch_size, model.image.activation, model.text.depth, model.embed_dim) == (
        16,
        "quick_gelu",
        2,
        64,
    )


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        ("CLIP-B/32", 151_277_313),
        ("CLIP-B/16", 149_620_737),
        ("CLIP-L/14", 427_616_513),
        ("CLIP-L/14@336", 427_944_193),
        ("ALIGN-base", 172_117_841),
        ("SigLIP-B/16", 203_155_970),
        ("SigLIP-So400m/14@384", 877_960_498),
    ],
)
def test_published_parameter_counts(variant, parameters):
    model = models.build("two_towers", variant=variant)
    side = getattr(model.image, "image_size", 289)
    shapes = shapes_of(model, jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32), TEXTS)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters


def test_pixels_that_fill_no_patch_are_left_out():
    model = models.build("vit", **IMAGE | {"image_size": 11}, crop=True)
    images = make_images(1, 11, 11, 3)
    variables = make_variables(model, images)
    assert model.table_grid == (2, 2)
    run = jax.jit(model.apply)
    np.testing.assert_allclose(run(variables, images).pooled, run(variables, images[:, :8, :8]).pooled, atol=1e-6)
    with pytest.raises(ValueError, match="not divisible"):
        jax.eval_shape(models.build("vit", **IMAGE).apply, variables, images)

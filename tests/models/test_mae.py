import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import fast_key, make, make_images, make_variables

from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.models.mae import denormalise, masked_error
from vitvlm.nn.patches import patchify

FIELDS = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture(scope="module")
def images():
    return make_images(3, 8, 12, 3)


@pytest.fixture(scope="module")
def noise():
    return jnp.asarray(np.random.default_rng(1).uniform(size=(3, 6)), jnp.float32)


@pytest.fixture(scope="module")
def model():
    return make("mae", mask_ratio=0.5, **FIELDS)


@pytest.fixture(scope="module")
def variables(model, images):
    return make_variables(model, images)


@pytest.fixture(scope="module")
def run(model, variables):
    """The model, compiled once for all tests."""
    return jax.jit(lambda images, noise, mask: model.apply(variables, images, noise, mask=mask))


def test_shapes_and_capture(model, variables, images, noise):
    output = jax.eval_shape(lambda: model.apply(variables, images, noise, capture=("hidden", "attention")))
    assert output.grid == (2, 3)
    assert output.tokens.shape == (3, 3, 16)
    assert output.keep.shape == (3, 3)
    assert output.reconstruction.shape == (3, 6, 48)
    assert output.hidden.shape == (3, 3, 1 + 3, 16)
    assert output.attention.shape == (2, 3, 2, 1 + 3, 1 + 3)
    assert output.decoder_hidden.shape == (2, 3, 1 + 6, 8)
    assert output.decoder_attention.shape == (1, 3, 2, 1 + 6, 1 + 6)


def test_the_mask_token_is_in_the_decoder_only(variables):
    tokens = [path for path in paths.flatten(variables["params"]) if "mask_token" in path]
    assert tokens == ["decoder/mask_token"]


def test_the_encoder_does_not_see_masked_patches(run, images, noise):
    output = run(images, noise, jnp.ones(3))
    masked_pixels = jnp.repeat(jnp.repeat(output.mask.reshape(3, 2, 3), 4, axis=1), 4, axis=2)[..., None]
    other = run(images + masked_pixels * make_images(3, 8, 12, 3)[::-1], noise, jnp.ones(3))
    np.testing.assert_array_equal(output.reconstruction, other.reconstruction)
    assert (output.loss_per_example != other.loss_per_example).all()


def test_loss_is_the_mean_over_masked_patches_of_real_examples(model, run, images, noise):
    output = run(images, noise, jnp.array([1.0, 0.0, 1.0]))
    patches = np.asarray(patchify(images, (4, 4)))
    mean, variance = patches.mean(-1, keepdims=True), patches.var(-1, keepdims=True, ddof=1)
    error = ((output.reconstruction - (patches - mean) / np.sqrt(variance + 1e-6)) ** 2).mean(-1)
    per_example = [error[i][output.mask[i] == 1].mean() for i in range(3)]
    np.testing.assert_allclose(output.loss_per_example, per_example, rtol=1e-5)
    np.testing.assert_allclose(output.loss, (per_example[0] + per_example[2]) / 2, rtol=1e-5)
    np.testing.assert_allclose(run(images, noise, jnp.ones(3)).loss, np.mean(per_example), rtol=1e-5)


def test_a_batch_of_padding_has_loss_zero(run, images, noise):
    assert run(images, noise, jnp.zeros(3)).loss == 0


def test_visible_patches_have_no_gradient():
    mask = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    gradient = jax.grad(lambda predicted: masked_error(predicted, jnp.ones((2, 2, 3)), mask).sum())(
        jnp.zeros((2, 2, 3))
    )
    np.testing.assert_array_equal(np.asarray(gradient != 0).all(axis=-1), mask)


def test_denormalise_inverts_the_target(model, images):
    target = model.target(images)
    np.testing.assert_allclose(target.var(axis=-1, ddof=1), 1, rtol=1e-4)
    patches = patchify(images, (4, 4))
    np.testing.assert_allclose(denormalise(target, patches), patches, atol=1e-5)


def test_masks_come_from_the_rng_when_no_noise_is_given(model, variables, images):
    masks = jax.jit(lambda seed: model.apply(variables, images, rngs={"mask": fast_key(seed)}).mask)
    np.testing.assert_array_equal(masks(0), masks(0))
    assert (masks(0) != masks(1)).any()
    assert (masks(0).sum(axis=1) == 3).all()


@pytest.mark.parametrize("masking, ratio", [("block", 0.7), ("grid", 0.75)])
def test_other_masking_on_an_image_of_another_size(masking, ratio, variables):
    model = make("mae", masking=masking, mask_ratio=ratio, **FIELDS)
    images = make_images(2, 16, 8, 3)
    output = jax.jit(lambda: model.apply(variables, images, rngs={"mask": fast_key(0)}))()
    assert output.mask.shape == (2, 8)
    assert (output.mask.sum(axis=1) == 6).all()
    assert np.isfinite(output.loss)


def test_encode_is_the_encoder_on_the_whole_image(model, variables, images):
    encoded = jax.jit(lambda: model.apply(variables, images, method=model.encode, capture=("hidden",)))()
    vit = make("vit", positions="sincos")
    alone = jax.jit(vit.apply)({"params": variables["params"]["vit"]}, images)
    np.testing.assert_allclose(encoded.tokens, alone.tokens, atol=1e-6)
    assert encoded.hidden.shape == (3, 3, 7, 16)


def test_no_positions_anywhere(images, noise):
    model = make("mae", positions="none", mask_ratio=0.5, **FIELDS)
    variables = make_variables(model, images)
    output = jax.jit(model.apply)(variables, images, noise)
    masked = [np.asarray(output.reconstruction[i])[np.asarray(output.mask[i]) == 1] for i in range(3)]
    for predictions in masked:  # mask tokens that have no position cannot be told apart
        np.testing.assert_allclose(predictions, predictions[:1].repeat(3, axis=0), atol=1e-5)


@pytest.mark.parametrize(
    "ratio, message",
    [(0.0, "masks none of the 6 patches"), (0.9, "keeps none of the 6 patches"), (1.5, "not in [0, 1)")],
)
def test_ratios_that_mask_or_keep_nothing(ratio, message, images, noise):
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(make("mae", mask_ratio=ratio, **FIELDS).init, jax.random.key(0), images, noise)
    assert message in str(error.value)

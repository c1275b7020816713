"""Pyramids of either kind as one token sequence, and the transformer on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import RESNET, SIZES, make_images, make_variables

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.nn.positions import resample_grid, sincos_grid
from vitvlm.nn.pyramids import ScaleTokens, split_scales

TOP = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "table_grid": (4, 4)}
CONVOLUTIONAL = {"name": "fpn", "width": 12, "backbone": {"name": "resnet", **RESNET}}
HIERARCHICAL = {**SIZES["swin"], "name": "swin", "patch_size": 4, "depths": (1, 1, 1), "heads": (2, 2, 4)}


@pytest.fixture(scope="module")
def images():
    return make_images(2, 32, 48, 3)


@pytest.fixture(scope="module", params=[CONVOLUTIONAL, HIERARCHICAL], ids=["resnet_fpn", "swin"])
def encoded(request, images):
    model = models.build("multiscale", backbone=request.param, num_classes=5, **TOP)
    variables = make_variables(model, images)
    run = jax.jit(lambda v, x: model.apply(v, x, capture=("hidden", "attention")))
    return model, variables, run(variables, images)


def test_both_routes_end_in_the_same_token_matrix(encoded):
    """Strides 4, 8, 16 of 32 x 48 pixels: 96 + 24 + 6 tokens, from convolutions and from windows alike."""
    _, _, output = encoded
    assert output.tokens.shape == (2, 126, 16)
    assert [level.shape for level in output.pyramid] == [(2, 8, 12, 16), (2, 4, 6, 16), (2, 2, 3, 16)]
    assert output.grid == (8, 12) and output.prefix.shape == (2, 0, 16) and output.logits.shape == (2, 5)
    assert output.hidden.shape == (3, 2, 126, 16) and output.attention.shape == (2, 2, 2, 126, 126)
    np.testing.assert_array_equal(output.pyramid[1].reshape(2, 24, 16), output.tokens[:, 96:120])
    np.testing.assert_allclose(output.pooled, np.asarray(output.tokens).mean(axis=1), atol=1e-5)


def test_every_level_reaches_the_logits(encoded, images):
    model, variables, _ = encoded

    def loss(params):
        logits = model.apply({**variables, "params": params}, images).logits
        return (logits * jnp.arange(5)).sum()

    gradients = jax.jit(jax.grad(loss))(variables["params"])["scales"]
    for name in ("level_0", "level_1", "level_2"):
        assert np.abs(gradients[name]["kernel"]).max() > 1e-6, name
    assert (np.abs(gradients["scales"]).max(axis=1) > 1e-6).all()


def test_scale_tokens_equal_their_definition():
    rng = np.random.default_rng(0)
    pyramid = tuple(rng.normal(size=(2, *shape)).astype(np.float32) for shape in ((4, 6, 5), (2, 3, 7)))
    module = ScaleTokens(8, (3, 3))
    variables = module.init(jax.random.key(0), pyramid)
    params = variables["params"]
    expected = []
    for s, level in enumerate(pyramid):
        places = np.asarray(resample_grid(jnp.asarray(sincos_grid((3, 3), 8)), level.shape[1:3]))
        linear = level @ np.asarray(params[f"level_{s}"]["kernel"]) + np.asarray(params[f"level_{s}"]["bias"])
        expected.append((linear + places + np.asarray(params["scales"][s])).reshape(2, -1, 8))
    tokens = module.apply(variables, pyramid)
    np.testing.assert_allclose(tokens, np.concatenate(expected, axis=1), atol=1e-5)
    again = split_scales(tokens, [level.shape[1:3] for level in pyramid])
    np.testing.assert_array_equal(again[1].reshape(2, 6, 8), tokens[:, 24:])


def test_levels_can_be_chosen(images):
    model = models.build("multiscale", backbone=CONVOLUTIONAL, levels=(2, 1), **TOP)
    shapes = jax.eval_shape(model.apply, make_variables(model, images), images)
    assert [level.shape[1:3] for level in shapes.pyramid] == [(4, 6), (2, 3)]
    for fields, message in [
        ({"levels": (0, 3)}, r"model\.levels: 3, but the backbone has levels 0 to 2"),
        ({"positions": "cosine"}, r"model\.positions: no positions 'cosine'"),
    ]:
        wrong = models.build("multiscale", backbone=CONVOLUTIONAL, **TOP | fields)
        with pytest.raises(ConfigError, match=message):
            jax.eval_shape(wrong.init, jax.random.key(0), images)
    with pytest.raises(ConfigError, match=r"model\.backbone\.name: missing"):
        models.build("multiscale", backbone={"variant": "T"}, **TOP)

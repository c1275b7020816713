import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import fast_key, make, make_images, make_variables

from tests.nn import programs
from vitvlm import models
from vitvlm.core import paths
from vitvlm.core.config import ConfigError


@pytest.fixture(scope="module")
def images():
    return make_images(2, 8, 12, 3)


@pytest.fixture(scope="module")
def variables(images):
    return make_variables(make("swin", num_classes=5), images)


def outputs_and_gradients(model, variables, images):
    """Returns the output with everything captured, and the gradients of a model without capture."""

    @jax.jit
    def run(variables):
        captured = model.apply(variables, images, capture=("hidden", "attention"))
        return captured, jax.grad(lambda variables: jnp.sin(model.apply(variables, images).logits).sum())(variables)

    return run(variables)


@pytest.fixture(scope="module")
def reference(images, variables):
    return outputs_and_gradients(make("swin", num_classes=5), variables, images)


def test_output_of_every_level_and_layer(reference):
    """Grids 4x6 and 2x3; the window of 2 is shifted in the second block only; the last grid is padded to 2x4."""
    output, _ = reference
    assert output.grid == (2, 3)
    assert output.tokens.shape == (2, 6, 16)
    assert output.prefix.shape == (2, 0, 16)
    assert output.logits.shape == (2, 5)
    assert [level.shape for level in output.pyramid] == [(2, 4, 6, 8), (2, 2, 3, 16)]
    assert [maps.shape for maps in output.hidden] == [(2, 4, 6, 8)] * 3 + [(2, 2, 3, 16)]
    assert [weights.shape for weights in output.attention] == [(12, 2, 4, 4), (12, 2, 4, 4), (4, 4, 4, 4)]
    for level, last in zip(output.pyramid, (2, 3), strict=True):
        np.testing.assert_array_equal(level, output.hidden[last])
    np.testing.assert_allclose(output.pooled, np.asarray(output.tokens).mean(axis=1), atol=1e-5)
    for weights in output.attention:
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)


def test_remat_changes_no_value_gradient_or_capture(images, variables, reference):
    found = outputs_and_gradients(make("swin", num_classes=5, remat="full"), variables, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), found, reference)


def test_remat_recomputes(images, variables):
    def products(remat):
        model = make("swin", num_classes=5, remat=remat)
        gradient = jax.grad(lambda variables: model.apply(variables, images).logits.sum())
        return len(programs.products(jax.make_jaxpr(gradient)(variables).jaxpr))

    assert products("full") > products("dots") > products("none") == products("all_dots")


def test_remat_keeps_what_its_name_says(images, variables):
    """The policy "all_dots" keeps the products and attention's weights, and computes norms and activations again."""

    def kept(remat):
        model = make("swin", num_classes=5, remat=remat)
        return programs.kept_bytes(lambda variables: model.apply(variables, images).logits.sum(), variables)

    assert kept("none") > kept("all_dots") > kept("dots") > kept("full")


def test_parameter_paths(images):
    model = make("swin", num_classes=5, positions="learned", image_size=(8, 12))
    shapes = {path: leaf.shape for path, leaf in paths.flatten(make_variables(model, images)["params"]).items()}
    expected = {
        "patches/kernel": (2, 2, 3, 8),
        "patches_norm/scale": (8,),
        "positions/grid": (4, 6, 8),
        "stages_0/blocks_1/attention/relative_positions": (9, 2),
        "stages_0/blocks_1/attention/query/kernel": (8, 8),
        "stages_0/blocks_1/mlp/up/kernel": (8, 12),
        "stages_1/merge/norm/bias": (32,),
        "stages_1/merge/reduction/kernel": (32, 16),
        "stages_1/blocks_0/attention/relative_positions": (9, 4),
        "norm/bias": (16,),
        "head/kernel": (16, 5),
    }
    assert expected.items() <= shapes.items()
    assert "stages_0/merge/norm/bias" not in shapes and "stages_1/merge/reduction/bias" not in shapes


def test_drop_path_grows_from_zero_through_all_stages(images):
    """Blocks at 0, 0.3, 0.6, 0.9; the second starts from merged tokens and cannot be compared."""
    model = make("swin", depths=(1, 3), drop_path=0.9)
    variables = make_variables(model, images)
    many = jnp.tile(images, (100, 1, 1, 1))
    run = jax.jit(lambda rng: model.apply(variables, many, train=True, capture=("hidden",), rngs={"dropout": rng}))
    hidden = run(fast_key(0)).hidden
    unchanged = [np.asarray(hidden[i] == hidden[i + 1]).all(axis=(1, 2, 3)).mean() for i in (0, 2, 3)]
    np.testing.assert_allclose(unchanged, [0, 0.6**2, 0.9**2], atol=0.1)
    assert unchanged[0] == 0


def test_training_is_random_and_evaluation_is_not(images, variables, reference):
    model = make("swin", dropout=0.2, attention_dropout=0.2, drop_path=0.5, num_classes=5)

    @jax.jit
    def train(seed):
        return model.apply(variables, images, train=True, rngs={"dropout": fast_key(seed)}).logits

    np.testing.assert_allclose(jax.jit(model.apply)(variables, images).logits, reference[0].logits, atol=1e-5)
    np.testing.assert_array_equal(train(0), train(0))
    assert (train(0) != train(1)).any()


def test_variants_and_explicit_sizes():
    model = models.build("swin", variant="B", depths=(1, 1, 1, 1), window=12, image_size=384)
    assert (model.width, model.depths, model.heads, model.window) == (128, (1, 1, 1, 1), (4, 8, 16, 32), 12)
    assert model.patch_size == 4


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"variant": "X"}, "model.variant: no variant 'X'; there is: B, L, S, T"),
        ({"variant": "T", "windows": 7}, 'model.windows: no such field; did you mean "window"'),
        ({"width": 8}, "model: missing fields depths, heads"),
        ({"variant": "T", "scan": True}, "model.scan: no such field"),
    ],
)
def test_fields_that_cannot_be_built(fields, message):
    with pytest.raises(ConfigError) as error:
        models.build("swin", **fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"positions": "sin-cos"}, "model.positions: no positions 'sin-cos'; did you mean \"sincos\""),
        ({"depths": (1, 1, 1)}, "model.depths: (1, 1, 1), with model.heads (2, 4): give each stage"),
        ({"depths": (1, 0)}, "model.depths: (1, 0)"),
        ({"remat": "ful"}, "model.remat: no policy 'ful'; did you mean \"full\""),
    ],
)
def test_fields_that_cannot_be_run(fields, message, images):
    with pytest.raises(ValueError) as error:
        jax.eval_shape(make("swin", **fields).init, jax.random.key(0), images)
    assert message in str(error.value)


def test_capture_of_what_there_is_not(images, variables):
    with pytest.raises(ConfigError, match='did you mean "attention"'):
        make("swin", num_classes=5).apply(variables, images, capture=("attentions",))

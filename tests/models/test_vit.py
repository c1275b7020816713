import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import fast_key, make, make_images, make_variables

from vitvlm import models
from vitvlm.core import paths
from vitvlm.core.config import ConfigError
from vitvlm.nn.patches import resample_kernel
from vitvlm.nn.positions import resample_grid


@pytest.fixture(scope="module")
def images():
    return make_images(2, 8, 12, 3)


def run(model, variables, images, **arguments):
    return jax.jit(lambda variables, images: model.apply(variables, images, **arguments))(variables, images)


def test_output_of_every_kind_of_token(images):
    model = make("vit", registers=3, num_classes=5)
    output = run(model, make_variables(model, images), images, capture=("hidden", "attention"))
    assert output.grid == (2, 3)
    assert output.tokens.shape == (2, 6, 16)
    assert output.prefix.shape == (2, 4, 16)
    assert output.logits.shape == (2, 5)
    assert output.hidden.shape == (3, 2, 10, 16)
    assert output.attention.shape == (2, 2, 2, 10, 10)
    np.testing.assert_array_equal(output.pooled, output.prefix[:, 0])
    (level,) = output.pyramid
    np.testing.assert_array_equal(level.reshape(2, 6, 16), output.tokens)


def test_gap_is_the_mean_of_the_patch_tokens(images):
    model = make("vit", pool="gap", registers=1, cls_token=True)
    output = run(model, make_variables(model, images), images)
    assert output.prefix.shape == (2, 2, 16)
    np.testing.assert_allclose(output.pooled, np.asarray(output.tokens).mean(axis=1), atol=1e-6)
    assert output.logits is None


def test_cls_and_gap_puts_the_two_together(images):
    model = make("vit", pool="cls_and_gap", num_classes=5)
    output = run(model, make_variables(model, images), images)
    both = np.concatenate([output.prefix[:, 0], np.asarray(output.tokens).mean(axis=1)], axis=1)
    np.testing.assert_allclose(output.pooled, both, atol=1e-6)


def test_deit_has_two_heads_and_answers_with_their_mean(images):
    model = make("deit", num_classes=5, registers=1)
    variables = make_variables(model, images)
    output = run(model, variables, images)
    assert output.prefix.shape == (2, 3, 16)
    params = variables["params"]
    for place, head, logits in [
        (0, "head", output.cls_logits),
        (1, "distillation_head", output.distillation_logits),
    ]:
        expected = output.prefix[:, place] @ params[head]["kernel"] + params[head]["bias"]
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(output.logits, (output.cls_logits + output.distillation_logits) / 2, atol=1e-6)
    assert params["distillation"].shape == params["positions"]["distillation"].shape == (16,)


def test_a_distillation_token_without_a_head(images):
    model = make("deit", num_classes=5, distillation_head=False)
    output = run(model, make_variables(model, images), images)
    assert output.distillation_logits is None and output.logits.shape == (2, 5)


@pytest.mark.parametrize("pool, prefix", [("cls", 1), ("cls_and_gap", 1), ("gap", 0), ("map", 0)])
def test_there_is_a_cls_token_exactly_if_it_is_pooled(pool, prefix, images):
    model = make("vit", pool=pool)
    assert jax.eval_shape(model.apply, make_variables(model, images), images).prefix.shape == (2, prefix, 16)


def test_parameter_paths(images):
    model = make("vit", registers=2, layer_scale=0.1, pool="map", representation_size=7, num_classes=5, cls_token=True)
    shapes = {path: leaf.shape for path, leaf in paths.flatten(make_variables(model, images)["params"]).items()}
    expected = {
        "cls": (16,),
        "registers": (2, 16),
        "positions/cls": (16,),
        "positions/grid": (2, 3, 16),
        "patches/kernel": (4, 4, 3, 16),
        "blocks/attention/query/kernel": (2, 16, 16),
        "blocks/attention_norm/scale": (2, 16),
        "blocks/attention_scale": (2, 16),
        "blocks/mlp/up/kernel": (2, 16, 24),
        "blocks/mlp_scale": (2, 16),
        "norm/bias": (16,),
        "pool/probe": (1, 16),
        "pool/mlp/down/bias": (16,),
        "representation/kernel": (16, 7),
        "head/kernel": (7, 5),
    }
    assert expected.items() <= shapes.items()


def test_without_positions_the_order_of_patches_is_lost_and_with_them_it_is_not(images):
    """Swaps the two halves of the image, patch columns 0 and 2."""
    swapped = jnp.concatenate([images[:, :, 8:], images[:, :, 4:8], images[:, :, :4]], axis=2)
    for positions, same in [("none", True), ("learned", False), ("sincos", False)]:
        model = make("vit", positions=positions)
        variables = make_variables(model, images)
        difference = np.abs(run(model, variables, images).pooled - run(model, variables, swapped).pooled).max()
        assert (difference < 1e-5) == same, positions


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_kept_patches_are_those_of_the_whole_image(positions, images):
    """All patches, in another order: the same tokens in that order, the same CLS token."""
    model = make("vit", positions=positions)
    variables = make_variables(model, images)
    keep = np.array([[5, 0, 3, 1, 2, 4], [0, 1, 2, 5, 4, 3]])
    whole, kept = run(model, variables, images), run(model, variables, images, keep=keep)
    np.testing.assert_allclose(kept.tokens, np.take_along_axis(whole.tokens, keep[..., None], axis=1), atol=1e-5)
    np.testing.assert_allclose(kept.pooled, whole.pooled, atol=1e-5)
    assert kept.pyramid == ()


def test_kept_patches_are_all_that_is_seen(images):
    model = make("vit")
    keep = np.array([[5, 0], [1, 2]])
    patches = images.reshape(2, 2, 4, 3, 4, 3).at[0, 0, :, 1].add(9.0).at[1, 1, :, 0].add(9.0)
    variables = make_variables(model, images)
    seen, changed = (run(model, variables, x, keep=keep).tokens for x in (images, patches.reshape(2, 8, 12, 3)))
    np.testing.assert_array_equal(seen, changed)


def test_image_of_another_size_uses_the_resampled_table(images):
    """The same as a model of that size whose table was resampled before."""
    small, large = make("vit"), make("vit", image_size=(16, 8))
    variables = make_variables(small, images)
    params = variables["params"]
    grid = resample_grid(params["positions"]["grid"], (4, 2))
    moved = {"params": params | {"positions": params["positions"] | {"grid": grid}}}
    larger = make_images(2, 16, 8, 3)
    np.testing.assert_allclose(run(small, variables, larger).tokens, run(large, moved, larger).tokens, atol=1e-5)


def test_another_patch_size_resamples_kernel_and_positions(images):
    """The same as a model of that patch size whose parameters were resampled before."""
    flexible, fixed = make("vit", num_classes=3), make("vit", patch_size=(2, 6), num_classes=3)
    variables = make_variables(flexible, images)
    params = variables["params"]
    moved = params | {
        "patches": params["patches"] | {"kernel": resample_kernel(params["patches"]["kernel"], (2, 6))},
        "positions": params["positions"] | {"grid": resample_grid(params["positions"]["grid"], (4, 2))},
    }
    output = jax.jit(lambda v, x: flexible.apply(v, x, patch_size=(2, 6)))(variables, images)
    assert output.grid == (4, 2)
    np.testing.assert_allclose(output.logits, run(fixed, {"params": moved}, images).logits, atol=1e-5)


def test_rectangular_patches():
    model = make("vit", patch_size=(2, 6), num_classes=3)
    images = make_images(1, 8, 12, 1)
    assert jax.eval_shape(model.apply, make_variables(model, images), images).grid == (4, 2)


def test_the_representation_layer_is_a_tanh_before_the_head(images):
    model = make("vit", representation_size=4, num_classes=3)
    variables = make_variables(model, images)
    output = run(model, variables, images)
    layers = variables["params"]
    hidden = np.tanh(output.prefix[:, 0] @ layers["representation"]["kernel"] + layers["representation"]["bias"])
    np.testing.assert_allclose(output.pooled, hidden, atol=1e-5)
    np.testing.assert_allclose(output.logits, hidden @ layers["head"]["kernel"] + layers["head"]["bias"], atol=1e-5)


def test_training_is_random_and_evaluation_is_not(images):
    model = make("vit", dropout=0.2, attention_dropout=0.2, drop_path=0.5, num_classes=3)
    variables = make_variables(model, images)

    @jax.jit
    def train(seed):
        return model.apply(variables, images, train=True, rngs={"dropout": fast_key(seed)}).logits

    evaluated = run(model, variables, images).logits
    np.testing.assert_allclose(evaluated, run(make("vit", num_classes=3), variables, images).logits, atol=1e-6)
    np.testing.assert_array_equal(train(0), train(0))
    assert (train(0) != train(1)).any()


def test_a_new_model_predicts_every_class_alike(images):
    """The head starts at zero, so the first loss is log S."""
    model = make("vit", num_classes=5)
    variables = jax.jit(model.init)(fast_key(0), images)
    np.testing.assert_array_equal(run(model, variables, images).logits, np.zeros((2, 5)))


def test_variants_and_explicit_sizes():
    model = models.build("vit", variant="S/16", depth=3, patch_size=(8, 4))
    assert (model.width, model.depth, model.heads, model.mlp_width) == (384, 3, 6, 1536)
    assert model.patch_size == (8, 4)
    assert models.build("vit", variant="g", patch_size=14) == models.build("vit", variant="g/14")
    assert {"mae", "vit"} <= set(models.names())


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("vitt", {}, "model 'vitt': no such model; did you mean \"vit\""),
        ("vit", {"varient": "S/16"}, 'model.varient: no such field; did you mean "variant"'),
        ("vit", {"variant": "S/16", "num_clases": 3}, 'model.num_clases: no such field; did you mean "num_classes"'),
        ("vit", {"variant": "S/x"}, "model.variant: no variant 'S/x'; write one of Ti, S, B, L, H, g"),
        ("vit", {"variant": "S"}, "model: missing field patch_size"),
        ("vit", {"width": 8}, "model: missing fields depth, heads, mlp_width, patch_size"),
        ("mae", {"variant": "S/16", "mask_ration": 0.5}, 'model.mask_ration: no such field; did you mean "mask_ratio"'),
        ("mae", {"variant": "S/16", "num_classes": 5}, "model.num_classes: no such field"),
        ("deit", {"variant": "S/16", "pool": "gap"}, "model.pool: no such field"),
    ],
)
def test_fields_that_cannot_be_built(name, fields, message):
    with pytest.raises(ConfigError) as error:
        models.build(name, **fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"pool": "mean"}, "model.pool: no pooling 'mean'; there is: cls, cls_and_gap, gap, map"),
        ({"mlp": "swigluu"}, "model.mlp: no MLP 'swigluu'; did you mean \"swiglu\""),
        ({"distillation": True, "pool": "gap"}, "model.distillation: needs model.pool \"cls\", not 'gap'"),
        ({"pool": "cls_and_gap", "cls_token": False}, 'model.cls_token: False, but model.pool is "cls_and_gap"'),
        ({"positions": "sin-cos"}, "model.positions: no positions 'sin-cos'; did you mean \"sincos\""),
        ({"cls_token": False}, 'model.cls_token: False, but model.pool is "cls"'),
        ({"patch_size": 5}, "image 8x12 is not divisible by patch 5x5: resize the image (model.image_size and"),
        ({"image_size": 10}, "image 10x10 is not divisible by patch 4x4"),
        ({"activation": "geluu"}, "activation 'geluu'"),
        ({"width": 18, "positions": "sincos"}, "sin-cos positions need a width divisible by 4, got 18"),
    ],
)
def test_fields_that_cannot_be_run(fields, message, images):
    with pytest.raises(ValueError) as error:
        jax.eval_shape(make("vit", **fields).init, jax.random.key(0), images)
    assert message in str(error.value)

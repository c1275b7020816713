"""Outputs of ResNet, EfficientNet and FPN, the fields that they refuse, and their batch statistics in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import SIZES, fast_key, make, make_images, make_variables

from vitvlm import models
from vitvlm.core import paths
from vitvlm.core.config import ConfigError


@pytest.fixture(scope="module")
def images():
    return make_images(2, 40, 65, 3)


@pytest.fixture(scope="module", params=["resnet", "efficientnet"])
def encoded(request, images):
    """A model, its variables, and its answer with every layer."""
    model = make(request.param, num_classes=5)
    variables = make_variables(model, images)
    return model, variables, jax.jit(lambda v, x: model.apply(v, x, capture=("hidden",)))(variables, images)


def test_the_encoders_contract(encoded):
    model, _, output = encoded
    h, w = output.grid
    *_, last = output.pyramid
    assert output.tokens.shape[:2] == (2, h * w) and last.shape[1:3] == (h, w)
    assert output.prefix.shape == (2, 0, output.tokens.shape[-1])
    np.testing.assert_allclose(output.pooled, np.asarray(output.tokens).mean(axis=1), atol=1e-5)
    assert output.logits.shape == (2, 5) and output.attention is None
    assert len(output.hidden) == 1 + (3 if model == make("resnet", num_classes=5) else 4)


def test_pyramids_are_finest_first_from_stride_4_on(images):
    shapes = {}
    for name in ("resnet", "efficientnet", "fpn"):
        model = make(name)
        shapes[name] = [x.shape[1:] for x in jax.eval_shape(model.apply, make_variables(model, images), images).pyramid]
    assert shapes == {
        "resnet": [(10, 17, 8), (5, 9, 12), (3, 5, 16)],
        "efficientnet": [(10, 16, 8), (5, 8, 16)],
        "fpn": [(10, 17, 12), (5, 9, 12), (3, 5, 12), (2, 3, 12)],
    }


@pytest.mark.parametrize(
    ("name", "variant", "size", "levels"),
    [
        ("resnet", "50", 224, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
        # B1's last strided block sees 15 rows, and pads alike on both sides: TensorFlow makes 8 of them.
        ("efficientnet", "B1", 240, [(60, 24), (30, 40), (15, 112), (8, 320)]),
    ],
)
def test_published_sizes(name, variant, size, levels):
    model = models.build(name, variant=variant)
    output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, size, size, 3)))[0])
    assert [(level.shape[1], level.shape[3]) for level in output.pyramid] == levels


def test_an_fpn_changes_the_pyramid_and_nothing_else(images):
    fpn = make("fpn", backbone=SIZES["fpn"]["backbone"] | {"num_classes": 5})
    variables = make_variables(fpn, images)
    backbone = {name: tree["backbone"] for name, tree in variables.items()}

    @jax.jit
    def run(variables, backbone, images):
        outputs = (
            fpn.apply(variables, images, capture=("hidden",)),
            fpn.backbone.apply(backbone, images, capture=("hidden",)),
        )
        return [output.replace(pyramid=()) for output in outputs]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *run(variables, backbone, images))
    assert fpn.num_classes == 5
    assert set(variables["params"]) == {"backbone", "pyramid"}


def test_parameter_paths(images):
    shapes = {path: leaf.shape for path, leaf in paths.flatten(make_variables(make("resnet"), images)).items()}
    assert shapes["params/stages_1/blocks_0/convs_1/conv/kernel"] == (3, 3, 3, 3)
    assert shapes["params/stages_1/blocks_0/shortcut/conv/kernel"] == (1, 1, 8, 12)
    assert "params/stages_1/blocks_1/shortcut/conv/kernel" not in shapes
    assert shapes["batch_stats/stem/norm/var"] == (8,)
    shapes = {path: leaf.shape for path, leaf in paths.flatten(make_variables(make("efficientnet"), images)).items()}
    assert shapes["params/stages_1/blocks_1/depthwise/conv/kernel"] == (5, 5, 1, 32)
    assert shapes["params/stages_1/blocks_1/squeeze_excite/squeeze/kernel"] == (32, 2)


def test_training_is_random_where_examples_are_dropped(images):
    model = make("efficientnet", num_classes=3, drop_path=0.9, dropout=0.5)
    variables = make_variables(model, images)

    @jax.jit
    def train(seed):
        return model.apply(variables, images, train=True, rngs={"dropout": fast_key(seed)}, mutable=["batch_stats"])[0]

    np.testing.assert_array_equal(train(0).logits, train(0).logits)
    assert (train(0).logits != train(1).logits).any()
    assert (train(0).pooled != train(1).pooled).any()  # before dropout


def test_a_new_model_predicts_every_class_alike(images):
    model = make("resnet", num_classes=5, widths=(8,), depths=(2,))
    output, _ = jax.jit(model.init_with_output)(fast_key(0), images)
    np.testing.assert_array_equal(output.logits, np.zeros((2, 5)))
    assert 0.1 < output.tokens.std() < 10


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet", {"variant": "51"}, "model.variant: no variant '51'; there is: 101, 152, 18, 34, 50"),
        ("resnet", {"width": (8,)}, 'model.width: no such field; did you mean "widths"'),
        ("resnet", {}, "model: missing fields depths, widths"),
        ("efficientnet", {"variant": "B8"}, "model.variant: no variant 'B8'; there is: B0, B1"),
        ("efficientnet", {"drop_conect": 0.1}, "model.drop_conect: no such field"),
        ("fpn", {}, "missing field backbone"),
        ("fpn", {"backbone": {"variant": "50"}}, "model.backbone.name: missing; there is: "),
        ("fpn", {"backbone": {"name": "resnett"}}, "model 'resnett': no such model; did you mean \"resnet\""),
        ("fpn", {"backbone": {"name": "resnet", "variant": "50"}, "widht": 8}, 'did you mean "width"'),
    ],
)
def test_fields_that_cannot_be_built(name, fields, message):
    with pytest.raises(ConfigError) as error:
        models.build(name, **fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet", {"layer": "bottelneck"}, "model.layer: no layer 'bottelneck'; did you mean \"bottleneck\""),
        ("resnet", {"depths": (1, 2)}, "model.depths: 2 stages, but model.widths has 3: give one for each"),
        ("resnet", {"activation": "reluu"}, "activation 'reluu'"),
        ("efficientnet", {"pool": "mean"}, "model.pool: no pooling 'mean'; there is: gap, max"),
        ("efficientnet", {"kernels": (3, 3)}, "model.kernels: 2 stages, but model.widths has 3"),
    ],
)
def test_fields_that_cannot_be_run(name, fields, message, images):
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(make(name, **fields).init, jax.random.key(0), images)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["resnet", "efficientnet", "fpn"])
def test_there_is_no_attention_to_look_at(name, images):
    model = make(name)
    with pytest.raises(ConfigError, match=r"capture: (ResNet|EfficientNet) has no attention; there is: hidden"):
        jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, capture=("attention",)))

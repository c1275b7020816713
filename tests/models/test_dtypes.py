"""dtype and param_dtype reach every submodule: read from the compiled program's operations, not from the results."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from toy_models import SIZES, make, make_images, make_variables

MODELS = {
    "vit": {
        "pool": "map",
        "registers": 2,
        "layer_scale": 0.1,
        "representation_size": 8,
        "num_classes": 3,
        "dropout": 0.1,
    },
    "deit": {"mlp": "swiglu", "num_classes": 3},
    "mae": {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.5, "drop_path": 0.1},
    "swin": {"positions": "learned", "image_size": (8, 12), "num_classes": 3, "dropout": 0.1, "drop_path": 0.1},
}
CONVOLUTIONAL = {"resnet": {"num_classes": 3}, "efficientnet": {"num_classes": 3, "drop_path": 0.1, "dropout": 0.1}}
LOOPS = [{"scan": True, "remat": "none"}, {"scan": True, "remat": "dots"}, {"scan": False, "remat": "none"}]
RUNS = [(name, loop) for name in ("vit", "deit", "mae") for loop in LOOPS]
RUNS += [("swin", {"remat": remat}) for remat in ("none", "dots")]


def equations(jaxpr: jax.extend.core.Jaxpr) -> Iterator:
    """Every equation, those inside scans, remats and custom derivatives too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("name, loop", RUNS)
def test_every_product_is_bfloat16_and_parameters_are_not(name, loop):
    model = make(name, dtype=jnp.bfloat16, **loop, **MODELS[name])
    images = make_images(2, 8, 12, 3)
    variables = make_variables(model, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    rngs = {"dropout": jax.random.key(0), "mask": jax.random.key(1)}

    def loss(variables):
        output = model.apply(variables, images, train=True, rngs=rngs)
        return output.loss if name == "mae" else output.logits.astype(jnp.float32).sum()

    found = list(equations(jax.make_jaxpr(jax.grad(loss))(variables).jaxpr))
    products = [equation for equation in found if equation.primitive.name == "dot_general"]
    assert len(products) > 20
    for equation in products:
        assert [operand.aval.dtype for operand in equation.invars] == [jnp.bfloat16] * 2, equation
    softmax = [equation.outvars[0].aval for equation in found if equation.primitive.name == "exp"]
    softmax = [array.dtype for array in softmax if array.ndim == 4]
    assert softmax
    assert set(softmax) == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_convolution_is_bfloat16_and_statistics_are_not(name):
    model = make(name, dtype=jnp.bfloat16, **CONVOLUTIONAL[name])
    images = make_images(2, 32, 48, 3)
    variables = make_variables(model, images)

    def loss(params, statistics):
        output, updated = model.apply(
            {"params": params, "batch_stats": statistics},
            images,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        return output.logits.astype(jnp.float32).sum(), updated["batch_stats"]

    program = jax.make_jaxpr(jax.grad(loss, has_aux=True))(variables["params"], variables["batch_stats"])
    found = [e for e in equations(program.jaxpr) if e.primitive.name in ("dot_general", "conv_general_dilated")]
    assert len(found) > 20
    for equation in found:
        assert [operand.aval.dtype for operand in equation.invars] == [jnp.bfloat16] * 2, equation
    assert {aval.dtype for aval in program.out_avals} == {jnp.dtype(jnp.float32)}  # gradients and new statistics


@pytest.mark.parametrize("name", [*MODELS, *CONVOLUTIONAL, "fpn"])
def test_parameters_of_another_dtype(name):
    dtypes = {"param_dtype": jnp.bfloat16, "dtype": jnp.bfloat16}
    fields = {"backbone": SIZES["fpn"]["backbone"] | dtypes} if name == "fpn" else dtypes
    model = make(name, **fields, **(MODELS | CONVOLUTIONAL).get(name, {}))
    variables = make_variables(model, make_images(2, 8, 12, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", ["vit", "swin", *CONVOLUTIONAL])
def test_outputs_have_the_dtype_of_the_computation(name):
    model = make(name, dtype=jnp.bfloat16, **(MODELS | CONVOLUTIONAL)[name])
    images = make_images(2, 8, 12, 3)
    output = jax.eval_shape(lambda: model.apply(make_variables(model, images), images, capture=("hidden",)))
    hidden = jax.tree.leaves(output.hidden)
    for leaf in (output.tokens, output.prefix, output.pooled, output.logits, *hidden, *output.pyramid):
        assert leaf.dtype == jnp.bfloat16

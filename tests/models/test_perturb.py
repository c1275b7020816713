"""dL/dA of every model: the gradient with respect to zeros added to the attention weights is the slope of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import make_images, make_variables

from vitvlm import models
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import map_with_path

SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24}
VIT = {**SIZES, "patch_size": 4, "image_size": (8, 12)}
TEXT = {**SIZES, "vocab_size": 9, "length": 6}
RESNET = {"name": "resnet", "widths": (8, 12), "depths": (1, 1), "stem_width": 8}
TOWERS = {"image": {"name": "vit", **VIT}, "text": {"name": "text", **TEXT, "pool": "cls"}, "embed_dim": 8}
DECODER = {"queries": 3, "pool_heads": 2, "decoder_depth": 2, "decoder_heads": 2}
IMAGES, TEXTS = make_images(2, 8, 12, 3), jnp.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


def own(output):
    return {"attention": output.attention}


def both(output):
    return {"image": own(output.image), "text": own(output.text)}


def three(output):
    return {**both(output), "decoder": {"attention": output.decoder_attention, "cross": output.cross_attention}}


def queries(output):
    qformer = {"attention": output.qformer.attention, "cross": output.qformer.cross_attention}
    return {"image": {"attention": output.image.attention}, "qformer": qformer}


def sides(output):
    decoder = {"attention": output.attention, "cross": output.cross_attention}
    return {"encoder": {"attention": output.encoder_attention}, "decoder": decoder}


CASES = {
    "vit": ({**VIT, "remat": "full"}, (IMAGES,), own, lambda out: out.pooled),
    "naflex": ({**SIZES, "patch_size": 4, "scan": False}, (IMAGES,), own, lambda out: out.pooled),
    "qwen_vit": ({**SIZES, "patch_size": 2}, (IMAGES,), own, lambda out: out.pooled),
    "text": (TEXT, (TEXTS,), own, lambda out: out.pooled),
    "decoder": ({**TEXT, "pattern": ("local", "global"), "local": 3}, (TEXTS,), own, lambda out: out.logits),
    "bert": (TEXT, (TEXTS,), own, lambda out: out.pooled),
    "bert_decoder": (TEXT, (TEXTS,), own, lambda out: out.logits),
    "t5": ({**SIZES, "vocab_size": 9, "remat": "full"}, (TEXTS,), sides, lambda out: out.logits),
    "multiscale": ({**SIZES, "backbone": RESNET}, (make_images(2, 32, 32, 3),), own, lambda out: out.pooled),
    "swin": (
        {"width": 8, "depths": (2, 1), "heads": (2, 2), "window": 2, "patch_size": 2, "remat": "dots"},
        (IMAGES,),
        own,
        lambda out: out.pooled,
    ),
    "two_towers": (TOWERS, (IMAGES, TEXTS), both, lambda out: out.logits_per_image),
    "blip2_qformer": (
        {"image": TOWERS["image"], "qformer": {**TEXT, "queries": 3, "lm_head": True, "remat": "full"}},
        (IMAGES, TEXTS),
        queries,
        lambda out: 5 * jnp.concatenate([out.qformer.queries, out.qformer.text], axis=1),
    ),
    "coca": ({**TOWERS, **DECODER, "remat": "full"}, (IMAGES, TEXTS), three, lambda out: out.logits),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_the_slope_along_a_change_of_the_weights(name):
    fields, inputs, attention, answer = CASES[name]
    model = models.build(name, **fields)
    variables = make_variables(model, *inputs[:1]) if len(inputs) == 1 else _variables(model, inputs)
    shapes = jax.eval_shape(lambda v: attention(model.apply(v, *inputs, capture=("attention",))), variables)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    rng = np.random.default_rng(0)
    change = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), zeros)
    # Each part of the tree has a slope of its own: none may be ignored.
    leaves, tree = jax.tree.flatten(change)
    size = 1e-2

    @jax.jit
    def run(variables):
        def loss(added):
            return jnp.sin(answer(model.apply(variables, *inputs, perturb=added))).sum()

        gradient = jax.tree.leaves(jax.grad(loss)(zeros))

        def slopes(i):
            alone = tree.unflatten([leaf if i == j else 0 * leaf for j, leaf in enumerate(leaves)])
            there, back = (jax.tree.map(lambda leaf, step=step: step * leaf, alone) for step in (size, -size))
            return (loss(there) - loss(back)) / (2 * size), jnp.vdot(gradient[i], leaves[i])

        return [slopes(i) for i in range(len(leaves))]

    for i, (expected, found) in enumerate(run(variables)):
        assert abs(found) > 1e-3
        np.testing.assert_allclose(found, expected, rtol=3e-2, atol=3e-3, err_msg=f"{name}, array {i}")


def _variables(model, inputs):
    """Random numbers in every parameter."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return map_with_path(lambda _, leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, leaf.dtype), shapes)


def test_a_part_that_a_model_has_not():
    model = models.build("two_towers", **TOWERS)
    with pytest.raises(ConfigError, match="perturb: nothing is called 'imgae'; did you mean \"image\""):
        jax.eval_shape(
            lambda: model.init_with_output(jax.random.key(0), IMAGES, TEXTS, perturb={"imgae": {}}),
        )

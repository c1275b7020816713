"""FLOPs counted on the program, against closed forms and published figures."""

import jax
import jax.numpy as jnp
import pytest

from vitvlm import models
from vitvlm.core import flops


def test_products_count_twice_their_multiplications():
    a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert flops.count(jnp.matmul, a, b) == 2 * 3 * 5 * 7
    assert flops.count(lambda a: jnp.einsum("bij,bjk->bik", a, a), jnp.zeros((2, 4, 4))) == 2 * 2 * 4**3


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 2)])
def test_convolutions(groups, stride):
    image, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4 // groups, 6))

    def convolve(image, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, (stride, stride), "SAME", dimension_numbers=dimensions, feature_group_count=groups
        )

    assert flops.count(convolve, image, kernel) == 2 * (8 // stride) ** 2 * 6 * 3 * 3 * (4 // groups)


def test_a_scanned_body_counts_at_every_trip():
    weights = jnp.zeros((12, 5, 5))

    def scanned(x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    assert flops.count(scanned, jnp.zeros((3, 5))) == 12 * 2 * 3 * 5 * 5


def test_calls_of_every_kind_count_once():
    @jax.custom_vjp
    def product(x):
        return x @ x

    product.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))
    x = jnp.zeros((4, 4))
    for wrapped in (product, jax.jit(product), jax.checkpoint(product)):
        assert flops.count(wrapped, x) == 2 * 4**3
    assert flops.count(jax.grad(lambda x: product(x).sum()), x) == 3 * 2 * 4**3


def test_a_while_loop_with_products_is_an_error():
    with pytest.raises(ValueError, match="while loop"):
        flops.count(lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x), jnp.zeros((2, 2)))


# GMACs at 224 px as published, to three digits; all products count, attention's included.
@pytest.mark.parametrize(("variant", "gmacs"), [("B/32", 4.41), ("B/16", 17.58), ("S/32", 1.15), ("S/16", 4.61)])
@pytest.mark.parametrize("scan", [True, False])
def test_published_costs(variant, gmacs, scan):
    model = models.build("vit", variant=variant, num_classes=1000, scan=scan)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert flops.count(model.apply, variables, image) / 2e9 == pytest.approx(gmacs, rel=0.01)

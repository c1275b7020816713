"""Parameter counts at full size equal the published ones; nothing is computed."""

import jax
import jax.numpy as jnp
import pytest

from vitvlm import models


def count(model) -> int:
    keys = {"params": jax.random.key(0), "mask": jax.random.key(0)}
    shapes = jax.eval_shape(model.init, keys, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    "variant, parameters",
    [
        ("Ti/16", 5_717_416),
        ("S/16", 22_050_664),
        ("S/32", 22_878_952),
        ("B/32", 88_224_232),
        ("B/16", 86_567_656),
        ("B/8", 86_576_872),
        ("L/16", 304_326_632),
        ("H/14", 632_045_800),
    ],
)
def test_vit(variant, parameters):
    assert count(models.build("vit", variant=variant, num_classes=1000)) == parameters


@pytest.mark.parametrize("variant, parameters", [("Ti/16", 5_910_800), ("S/16", 22_436_432), ("B/16", 87_338_192)])
def test_distilled_deit(variant, parameters):
    assert count(models.build("deit", variant=variant, num_classes=1000)) == parameters


@pytest.mark.parametrize(
    "variant, parameters", [("T", 28_288_354), ("S", 49_606_258), ("B", 87_768_224), ("L", 196_532_476)]
)
def test_swin(variant, parameters):
    assert count(models.build("swin", variant=variant, num_classes=1000)) == parameters


def test_vit_g_has_the_1011_million_of_the_papers_table():
    assert round(count(models.build("vit", variant="g/14")) / 1e6) == 1011


@pytest.mark.parametrize(
    "variant, parameters, fixed_positions",
    [
        ("B/16", 111_907_840, 197 * (768 + 512)),
        ("L/16", 329_541_888, 197 * (1024 + 512)),
        ("H/14", 657_074_508, 257 * (1280 + 512)),
    ],
)
def test_mae(variant, parameters, fixed_positions):
    """The published counts hold the fixed tables of encoder and decoder, which are constants here."""
    assert count(models.build("mae", variant=variant)) + fixed_positions == parameters

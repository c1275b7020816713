"""Swin's rows on tensors of no checkpoint: timm's names, and the index that older checkpoints hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core import paths
from vitvlm.nn.relative import relative_position_index
from vitvlm.pretrained.swin import swin_rows
from vitvlm.pretrained.tables import Table
from vitvlm.pretrained.timm_swin import swin_rows as timm_rows


def make(**fields):
    sizes = {"width": 8, "depths": (2, 1), "heads": (2, 4), "window": 3, "mlp_ratio": 2.0, "patch_size": 2}
    return models.build("swin", **sizes | {"image_size": 12, "num_classes": 5} | fields)


def shapes_of(model):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    return {path: leaf.shape for path, leaf in paths.flatten(variables).items()}


def timm_shapes(width, depths, heads, window, mlp_ratio, patch, grid, classes):
    """Returns the shapes of timm's SwinTransformer with absolute positions, by name."""
    shapes = {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "patch_embed.norm.weight": (width,),
        "patch_embed.norm.bias": (width,),
        "absolute_pos_embed": (1, grid * grid, width),
    }
    for s, depth in enumerate(depths):
        D = width * 2**s
        if s:
            shapes[f"layers.{s}.downsample.norm.weight"] = (2 * D,)
            shapes[f"layers.{s}.downsample.norm.bias"] = (2 * D,)
            shapes[f"layers.{s}.downsample.reduction.weight"] = (D, 2 * D)
        for i in range(depth):
            block = f"layers.{s}.blocks.{i}"
            shapes[f"{block}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads[s])
            linear = {"attn.qkv": (3 * D, D), "attn.proj": (D, D)}
            linear |= {"mlp.fc1": (int(mlp_ratio * D), D), "mlp.fc2": (D, int(mlp_ratio * D))}
            for name, shape in linear.items():
                shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
            for name in ("norm1", "norm2"):
                shapes |= {f"{block}.{name}.weight": (D,), f"{block}.{name}.bias": (D,)}
    return shapes | {
        "norm.weight": (D,),
        "norm.bias": (D,),
        "head.fc.weight": (classes, D),
        "head.fc.bias": (classes,),
    }


def random_tensors(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_timm_there_and_back():
    model = make(positions="learned")
    tensors = random_tensors(timm_shapes(8, (2, 1), (2, 4), 3, 2, patch=2, grid=6, classes=5))
    table = Table.reading(timm_rows(model, tensors), tensors)
    table.check_shapes({name: tensor.shape for name, tensor in tensors.items()}, shapes_of(model))
    variables = table.read(tensors)
    written = Table(timm_rows(model, ())).write(variables)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)


@pytest.mark.parametrize("biased", [True, False])
def test_timm_and_transformers_are_the_same_parameters(biased):
    """Query, key and value of one are fused in the other, and merging belongs to the stage before or after."""
    model = make(qkv_bias=biased)
    variables = paths.unflatten(random_tensors(shapes_of(model)))
    timm = Table(timm_rows(model, ())).write(variables)
    transformers = Table(swin_rows(model, ())).write(variables)
    for kind in ("weight", "bias") if biased else ("weight",):
        parts = [
            transformers[f"swin.encoder.layers.0.blocks.1.attention.self.{x}.{kind}"] for x in ("query", "key", "value")
        ]
        np.testing.assert_array_equal(timm[f"layers.0.blocks.1.attn.qkv.{kind}"], np.concatenate(parts))
    assert biased == ("layers.0.blocks.1.attn.qkv.bias" in timm)
    merge = "downsample.reduction.weight"
    np.testing.assert_array_equal(timm[f"layers.1.{merge}"], transformers[f"swin.encoder.layers.0.{merge}"])


@pytest.mark.parametrize(
    "rows, name",
    [
        (swin_rows, "swin.encoder.layers.1.blocks.0.attention.self.relative_position_index"),
        (timm_rows, "layers.1.blocks.0.attn.relative_position_index"),
    ],
    ids=["transformers", "timm"],
)
def test_an_index_in_the_checkpoint_is_passed_over(rows, name):
    model = make()
    variables = paths.unflatten(random_tensors(shapes_of(model)))
    tensors = Table(rows(model, ())).write(variables)
    assert name not in tensors
    tensors[name] = relative_position_index(3, 3)
    table = Table.reading(rows(model, tensors), tensors)
    table.check_shapes({name: tensor.shape for name, tensor in tensors.items()}, shapes_of(model))
    jax.tree.map(np.testing.assert_array_equal, table.read(tensors), variables)

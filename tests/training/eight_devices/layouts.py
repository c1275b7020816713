"""Every layout computes what one device computes, and really distributes parameters and work (see test_devices.py)."""

import functools
import re

import jax
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.paths import flatten
from vitvlm.nn.stack import is_scanned
from vitvlm.tasks.classify import Classify
from vitvlm.tasks.reconstruct import Reconstruct
from vitvlm.training import sharding

BATCH = 8
SIZES = {
    "width": 16, "depth": 2, "heads": 4, "mlp_width": 32, "patch_size": 4, "image_size": (8, 16),
}  # fmt: skip
LAYOUTS = {
    "data 8": ({"data": 8}, "replicated"),
    "fsdp 8": ({"fsdp": 8}, "fsdp"),
    "data 4, tensor 2": ({"data": 4, "tensor": 2}, "tensor"),
    "data 2, fsdp 2, tensor 2": ({"data": 2, "fsdp": 2, "tensor": 2}, "fsdp+tensor"),
}


@functools.cache
def make_task(name, scan):
    if name == "vit":
        return Classify(models.build("vit", **SIZES, num_classes=8, scan=scan, pool="map"))
    return Reconstruct(models.build("mae", **SIZES, decoder_width=8, decoder_depth=2, decoder_heads=2, scan=scan))


@functools.cache
def make_batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(BATCH, 8, 16, 3)).astype(np.float32),
        "label": rng.integers(8, size=BATCH).astype(np.int32),
        "mask": np.array([1, 1, 0, 1, 1, 1, 1, 1], np.float32),
    }


@functools.cache
def make_params(name, scan):
    """Random parameters, in NumPy: none of them is zero or one, as initialisers have it, and nothing is compiled."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(make_task(name, scan).init, jax.random.key(0), make_batch())["params"]
    return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def loss_and_gradients(task_loss):
    def loss(params, batch):
        return task_loss({"params": params}, batch, jax.random.key(2), True)[0]

    return jax.value_and_grad(loss)


@functools.cache
def on_one_device(name, scan):
    return jax.device_get(
        jax.jit(loss_and_gradients(make_task(name, scan).loss))(make_params(name, scan), make_batch())
    )


def compile_layout(name, scan, layout):
    """The compiled loss and gradients, and its arguments, placed."""
    axes, preset = LAYOUTS[layout]
    mesh = sharding.make_mesh(axes)
    params = make_params(name, scan)
    places = sharding.shardings(params, preset, mesh)
    compiled = (
        jax.jit(
            loss_and_gradients(sharding.keep_examples_split(make_task(name, scan).loss, mesh)),
            in_shardings=(places, sharding.batch_sharding(mesh)),
            out_shardings=(None, places),
        )
        .lower(params, make_batch())
        .compile()
    )
    return compiled, jax.device_put(params, places), sharding.put_batch(make_batch(), mesh)


def significant(shape):
    """Sizes above 1 in order of size: a shape but for transposition and empty axes."""
    return tuple(sorted(size for size in shape if size > 1))


def collectives(compiled):
    """Kinds of collectives in a compiled program, each with the shapes of what it yields."""
    pattern = r"= \(?\w+\[([\d,]*)\][^=]*? (all-gather|all-reduce|reduce-scatter|all-to-all)\("
    found = {}
    for shape, kind in re.findall(pattern, compiled.as_text()):
        found.setdefault(kind, set()).add(significant(int(size) for size in shape.split(",") if size))
    return found


CASES = [(name, True, layout) for name in ("vit", "mae") for layout in LAYOUTS]
CASES += [(name, False, "data 2, fsdp 2, tensor 2") for name in ("vit", "mae")]


@pytest.mark.parametrize(("name", "scan", "layout"), CASES)
def test_loss_and_gradients_equal_one_device(name, scan, layout):
    compiled, params, batch = compile_layout(name, scan, layout)
    loss, gradients = jax.device_get(compiled(params, batch))
    expected_loss, expected = on_one_device(name, scan)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for path, leaf in flatten(expected).items():
        np.testing.assert_allclose(flatten(gradients)[path], leaf, atol=1e-5, err_msg=path)

    found = collectives(compiled)
    assert "all-reduce" in found  # of gradients, and of products whose terms are split
    if layout == "data 8":
        assert set(found) == {"all-reduce"}
    if layout == "fsdp 8":
        # What travels before it is used are parameters, layer by layer: never examples, of which there are 8.
        shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
        layers = {shape[1:] if is_scanned(path) else shape for path, shape in shapes.items()}
        assert found["all-gather"] <= {significant(shape) for shape in layers}

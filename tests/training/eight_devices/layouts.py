"""Every layout computes what one device computes, and really distributes parameters and work (see test_devices.py)."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from vitvlm import models
from vitvlm.core.paths import flatten
from vitvlm.nn.stacking import is_scanned
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
    if name == "resnet":
        return Classify(models.build("resnet", widths=(16, 32), depths=(1, 1), stem_width=16, num_classes=8))
    return Reconstruct(models.build("mae", **SIZES, decoder_width=8, decoder_depth=2, decoder_heads=2, scan=scan))


@functools.cache
def make_batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(BATCH, 8, 16, 3)).astype(np.float32),
        "label": rng.integers(8, size=BATCH).astype(np.int32),
        "example_mask": np.array([1, 1, 0, 1, 1, 1, 1, 1], np.float32),
    }


@functools.cache
def make_variables(name, scan):
    """Parameters and the other collections, random, in NumPy: none of them is zero or one, as initialisers have it, and
    nothing is compiled."""
    rng = np.random.default_rng(1)
    shapes = dict(jax.eval_shape(make_task(name, scan).init, jax.random.key(0), make_batch()))
    variables = jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
    return variables.pop("params"), variables


def loss_and_gradients(task_loss):
    """`(params, collections, batch) -> ((loss, updated collections), gradients)`."""

    def loss(params, collections, batch):
        value, _, updated = task_loss({"params": params, **collections}, batch, jax.random.key(2), True)
        return value, updated

    return jax.value_and_grad(loss, has_aux=True)


@functools.cache
def on_one_device(name, scan):
    return jax.device_get(
        jax.jit(loss_and_gradients(make_task(name, scan).loss))(*make_variables(name, scan), make_batch())
    )


def compile_layout(name, scan, layout):
    """The compiled loss and gradients, and its arguments, placed; collections besides the parameters are replicated."""
    axes, preset = LAYOUTS[layout]
    mesh = sharding.make_mesh(axes)
    params, others = make_variables(name, scan)
    places = sharding.shardings(params, preset, mesh)
    whole = sharding.shardings(others, "replicated", mesh)
    compiled = (
        jax.jit(
            loss_and_gradients(sharding.keep_examples_split(make_task(name, scan).loss, mesh)),
            in_shardings=(places, whole, sharding.batch_sharding(mesh)),
            out_shardings=((None, whole), places),
        )
        .lower(params, others, make_batch())
        .compile()
    )
    return compiled, (*jax.device_put((params, others), (places, whole)), sharding.put_batch(make_batch(), mesh))


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
CASES += [(name, False, "data 2, fsdp 2, tensor 2") for name in ("vit", "mae", "resnet")]
CASES += [("resnet", False, "data 8")]  # batch norm: the mean over the examples of all devices


@pytest.mark.parametrize(("name", "scan", "layout"), CASES)
def test_loss_and_gradients_equal_one_device(name, scan, layout):
    compiled, arguments = compile_layout(name, scan, layout)
    (loss, updated), gradients = jax.device_get(compiled(*arguments))
    (expected_loss, expected_updates), expected = on_one_device(name, scan)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    found = flatten({"gradients": gradients, "updated": updated})
    for path, leaf in flatten({"gradients": expected, "updated": expected_updates}).items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-5, err_msg=path)

    travels = collectives(compiled)
    assert "all-reduce" in travels  # of gradients, and of products whose terms are split
    if layout == "data 8":
        assert set(travels) == {"all-reduce"}
    if layout == "fsdp 8":
        # What travels before it is used are parameters, layer by layer: never examples, of which there are 8.
        shapes = {path: leaf.shape for path, leaf in flatten(arguments[0]).items()}
        layers = [shape[1:] if is_scanned(path) else shape for path, shape in shapes.items()]
        flat = [(math.prod(shape[:-1]), shape[-1]) for shape in layers if shape]  # as a patch embedding is multiplied
        assert travels["all-gather"] <= {significant(shape) for shape in (*layers, *flat)}

"""Tiny models with random parameters, made without compiling an initialisation."""

import jax
import jax.numpy as jnp
import numpy as np

from vitvlm import models
from vitvlm.core.paths import map_with_path

TRANSFORMER = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "patch_size": 4, "image_size": (8, 12)}
RESNET = {"widths": (8, 12, 16), "depths": (1, 2, 1), "stem_width": 8}
SIZES = {
    "vit": TRANSFORMER,
    "deit": TRANSFORMER,
    "mae": TRANSFORMER,
    "swin": {"width": 8, "depths": (2, 1), "heads": (2, 4), "window": 2, "mlp_ratio": 1.5, "patch_size": 2},
    "resnet": RESNET,
    "efficientnet": {
        "width_factor": 0.25,
        "widths": (16, 24, 40),
        "depths": (1, 2, 1),
        "kernels": (3, 5, 3),
        "strides": (1, 2, 2),
        "expansions": (1, 4, 2),
    },
    "fpn": {"backbone": {"name": "resnet", **RESNET}, "width": 12, "extra_levels": 1},
}


def make(name: str, **fields):
    """A tiny model; `fields` change it."""
    return models.build(name, **SIZES[name] | fields)


def make_images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def fast_key(seed: int) -> jax.Array:
    """A random key whose generator compiles several times faster on CPU than the default one."""
    return jax.random.key(seed, impl="rbg")


def make_variables(model, images, seed: int = 0):
    """Random normal numbers in every parameter, of its dtype; running variances are near one."""
    keys = {"params": jax.random.key(0), "mask": jax.random.key(0)}
    shapes = jax.eval_shape(model.init, keys, images)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape) * 0.2
        is_variance = path.startswith("batch_stats/") and path.endswith("/var")
        return jnp.asarray(np.exp(values) if is_variance else values, leaf.dtype)

    return map_with_path(draw, shapes)

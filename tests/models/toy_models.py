"""Tiny models with random parameters, made without compiling an initialisation."""

import jax
import jax.numpy as jnp
import numpy as np

from vitvlm import models

VIT = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "patch_size": 4, "image_size": (8, 12)}
SWIN = {"width": 8, "depths": (2, 1), "heads": (2, 4), "window": 2, "mlp_ratio": 1.5, "patch_size": 2}
SIZES = {"vit": VIT, "deit": VIT, "mae": VIT, "swin": SWIN}


def make(name: str, **fields):
    """A tiny model; `fields` change it."""
    return models.build(name, **SIZES[name] | fields)


def make_images(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def fast_key(seed: int) -> jax.Array:
    """A random key whose generator compiles several times faster on CPU than the default one."""
    return jax.random.key(seed, impl="rbg")


def make_variables(model, images, seed: int = 0):
    """Random normal numbers in every parameter, of its dtype."""
    keys = {"params": jax.random.key(0), "mask": jax.random.key(0)}
    shapes = jax.eval_shape(model.init, keys, images)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype), shapes)

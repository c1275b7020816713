"""A small model of BLIP-2's first stage, its task and batches, for tests on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np

from vitvlm import models
from vitvlm.core import paths
from vitvlm.tasks import QFormerPretraining

SIZES = {"width": 16, "heads": 4, "mlp_width": 20}
IMAGE = {"name": "vit", "depth": 1, "patch_size": 4, "image_size": (8, 12), **SIZES}
QFORMER = {"depth": 2, "queries": 5, "vocab_size": 30, "length": 9, "lm_head": True, **SIZES}
RNG = jax.random.key(3)
L = 7


def a_model(**fields):
    return models.build(
        "blip2_qformer", image=IMAGE, qformer=QFORMER | fields.pop("qformer", {}), embed_dim=8, **fields
    )


def a_batch(size=5):
    """Pairs whose last is padding, with texts of several lengths."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, L + 1, size)
    return {
        "image": jnp.asarray(rng.normal(size=(size, 8, 12, 3)), jnp.float32),
        "text_tokens": jnp.asarray(rng.integers(3, 29, (size, L)), jnp.int32),
        "text_mask": jnp.asarray(np.arange(L) < lengths[:, None], jnp.int32),
        "example_mask": jnp.ones(size).at[-1].set(0),
        "index": jnp.arange(size),
    }


def a_task(model=None, **fields):
    return QFormerPretraining(a_model(scan=False) if model is None else model, **fields)


def drawn(task):
    """Random parameters, norms near one and a scale near the published."""
    shapes = jax.eval_shape(lambda: task.init(RNG, a_batch()))

    def values(path, leaf):
        noise = np.random.default_rng(len(path) + leaf.size).normal(size=leaf.shape)
        if path.endswith("log_scale"):
            return np.float32(2.0)
        return jnp.asarray(0.3 * noise + path.endswith("scale"), jnp.float32)

    return paths.map_with_path(values, shapes)

"""A workdir of a classifier that nobody trained: two checkpoints with metrics and averages, and data of its own."""

import jax
import jax.numpy as jnp
import numpy as np

from vitvlm import models
from vitvlm.training.best import Best
from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.workdir import CHECKPOINTS, claim

OPS = "decode(3)|resize_small(16)|central_crop(16)|normalize('half')"
MODEL = {
    "name": "vit",
    **{"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "patch_size": 8, "image_size": 16, "num_classes": 3},
    "scan": False,
}
BEST, LATEST = 2, 4


def write(folder, images, names=("cat", "dog", "emu"), **model):
    """Writes the workdir; checkpoint 2 is the best, 4 the latest, and both have averages. Returns the parameters."""
    section = {**MODEL, **model}
    config = {
        "task": {"name": "classify"},
        "model": section,
        "classes": list(names),
        "data": {
            "source": f"folder:{images}",
            "train": {"split": "train", "ops": OPS},
            "eval": {"split": "test", "ops": OPS},
        },
        "batch_size": 4,
        "optimizer": {"name": "adamw"},
        "evals": {"test": {"type": "classification"}},
        "checkpoint": {"best": "test/top1"},
    }
    built = models.build(section["name"], **{name: value for name, value in section.items() if name != "name"})
    variables = built.init(jax.random.key(0), np.zeros((1, 16, 16, 3)))
    head = jax.random.normal(jax.random.key(1), (section["width"], section["num_classes"]))
    variables["params"]["head"]["kernel"] = head
    claim(folder, config)
    with Checkpoints(folder / CHECKPOINTS, config=config, best=Best("test/top1")) as checkpoints:
        for step, top1 in ((BEST, 0.9), (LATEST, 0.5)):
            params = jax.tree.map(lambda leaf, step=step: leaf + 0.01 * step, variables["params"])
            state = {"params": params, "ema": jax.tree.map(lambda leaf: jnp.array(leaf / 2), params)}
            checkpoints.save(step, state, metrics={"test/top1": top1})
    return variables["params"]

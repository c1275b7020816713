"""One small ViT in every kind of file, for the tests of where loading puts its tensors.

Each function writes a file or folder, and returns it with the variables in it, on the host and looped.
"""

import json

import jax
import ml_dtypes
import numpy as np
import torch

from vitvlm import models, pretrained
from vitvlm.nn.stacking import unstack_blocks
from vitvlm.pretrained import big_vision, tensors, timm_vit
from vitvlm.pretrained.tables import Table
from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.workdir import claim

SIZES = {
    "width": 128, "depth": 3, "heads": 2, "mlp_width": 256, "patch_size": 4, "image_size": 16, "num_classes": 8,
}  # fmt: skip


def random_variables(model, dtype=np.float32):
    """Variables on the host; nothing is compiled."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), dict(shapes))


def safetensors_file(folder, dtype=np.float32):
    model = models.build("vit", **SIZES, scan=False)
    variables = random_variables(model, dtype)
    pretrained.save(pretrained.Pretrained(model, variables, None, None, {}), folder)
    return folder, variables


def half_precision(folder):
    return safetensors_file(folder, ml_dtypes.bfloat16)


def safetensors_shards(folder):
    """Shards: the tensors of `safetensors_file` by turns in two files."""
    _, variables = safetensors_file(folder)
    whole = dict(tensors.open_folder(folder))
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(whole))}
    for file in set(places.values()):
        tensors.write_folder({name: np.array(whole[name]) for name in whole if places[name] == file}, folder, file)
    (folder / tensors.SINGLE).unlink()
    (folder / tensors.INDEX).write_text(json.dumps({"weight_map": places}))
    return folder, variables


def torch_file(folder):
    """timm's names, whose queries, keys and values are one tensor."""
    model = models.build("vit", **SIZES, scan=False)
    variables = random_variables(model)
    found = Table(timm_vit.vit_rows(model, ())).write(variables)
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in found.items()}, folder / "vit.pth")
    return folder / "vit.pth", variables


def npz_file(folder, write=np.savez):
    """big_vision's names, its blocks scanned."""
    model = models.build("vit", **SIZES, scan=False, pool="gap", activation="gelu_tanh", norm_eps=1e-6)
    variables = random_variables(model)
    found = Table(big_vision.vit_rows(model, ())).write(variables)
    blocks = {name.split("encoderblock_0/")[1] for name in found if "encoderblock_0/" in name}
    for rest in blocks:
        each = [found.pop(f"Transformer/encoderblock_{i}/{rest}") for i in range(model.depth)]
        found[f"Transformer/encoderblock/{rest}"] = np.stack(each)
    write(folder / "vit.npz", **found)
    return folder / "vit.npz", variables


def compressed_npz_file(folder):
    return npz_file(folder, np.savez_compressed)


def workdir(folder):
    """A training's, with averages and an optimizer, which nobody asks for; its blocks are scanned."""
    model = models.build("vit", **SIZES, scan=True)
    params = random_variables(model)["params"]
    config = {"model": {"name": "vit", **SIZES, "scan": True}, "data": {"eval": {"ops": None}}}
    claim(folder, config)
    moments = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params)
    averages = jax.tree.map(lambda leaf: leaf + 1, params)
    state = {"params": params, "ema": averages, "opt_state": {"mu": moments}}
    with Checkpoints(folder / pretrained.CHECKPOINTS, config=config) as checkpoints:
        checkpoints.save(3, jax.tree.map(jax.numpy.asarray, state))
    return folder, {"params": unstack_blocks(averages)}


SOURCES = (
    safetensors_file, half_precision, safetensors_shards, torch_file, npz_file, compressed_npz_file, workdir,
)  # fmt: skip
MAPPED = (safetensors_file, half_precision, safetensors_shards, torch_file, npz_file)
FIELDS = {torch_file: {"heads": 2}}

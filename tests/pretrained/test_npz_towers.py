"""big_vision's SigLIP and LiT in one .npz, against small models of Flax's own layers: `file.npz`, `:img` and `:txt`."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from test_npz import WIDTH, Encoder, Reference

from vitvlm import pretrained

TEXTS = np.random.default_rng(2).integers(30, size=(3, 7)).astype(np.int32)
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)


class Text(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(30, WIDTH, name="Embed_0")(ids)
        x = x + self.param("pos_embedding", nn.initializers.normal(1.0), (1, *x.shape[1:]))
        return nn.Dense(5, name="head")(Encoder(False, False, name="Encoder_0")(x)[:, -1])


class Towers(nn.Module):
    """`kind` of the image tower; with its last layer, which LiT has and SigLIP, whose text has its width, has not."""

    bias: bool

    @nn.compact
    def __call__(self, images, ids):
        image, text = Reference("map", name="img")(images), Text(name="txt")(ids)
        image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
        logits = image @ text.T * jnp.exp(self.param("t", nn.initializers.constant(2.0), (1,)))
        return logits + self.param("b", nn.initializers.constant(-3.0), (1,)) if self.bias else logits


def write(path, bias, scanned, prefix="params/"):
    """The reference's logits, its parameters in a file, and by themselves."""
    model = Towers(bias)
    params = jax.jit(model.init)(jax.random.key(0), IMAGES, TEXTS)["params"]
    params = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(1).normal(size=x.shape).astype(np.float32), params)
    arrays = {prefix + name: np.asarray(x) for name, x in flatten_dict(params, sep="/").items()}
    if scanned:
        first = [name for name in arrays if "encoderblock_0" in name]
        for name in first:
            stacked = np.stack([arrays.pop(name.replace("block_0", f"block_{i}")) for i in range(2)])
            arrays[re.sub(r"encoderblock_0", "encoderblock", name)] = stacked
    np.savez(path, **arrays)
    return jax.jit(model.apply)({"params": params}, IMAGES, TEXTS), params


@pytest.mark.parametrize(("bias", "scanned"), [(True, False), (False, False), (True, True)])
def test_both_towers_and_each_alone(bias, scanned, tmp_path):
    expected, params = write(tmp_path / "a.npz", bias, scanned)
    loaded = pretrained.load(tmp_path / "a.npz", image_size=(8, 12))
    ours = jax.jit(loaded.model.apply)(loaded.variables, IMAGES, TEXTS)
    np.testing.assert_allclose(ours.logits_per_image, expected, atol=1e-4)
    assert loaded.preprocessing == "decode(3)|resize((8, 12))|normalize('half')" and loaded.tokenizer is None
    text = pretrained.load(f"{tmp_path}/a.npz:txt")
    np.testing.assert_allclose(
        jax.jit(text.model.apply)(text.variables, TEXTS).pooled,
        Text().apply({"params": params["txt"]}, TEXTS),
        atol=1e-4,
    )
    assert text.preprocessing is None
    image = pretrained.load(f"{tmp_path}/a.npz:img", image_size=(8, 12))
    np.testing.assert_allclose(
        jax.jit(image.model.apply)(image.variables, IMAGES).logits,
        jax.jit(Reference("map").apply)({"params": params["img"]}, IMAGES),
        atol=1e-4,
    )


def test_gradients_reach_both_towers_as_in_the_reference(tmp_path):
    _, params = write(tmp_path / "a.npz", True, False)
    loaded = pretrained.load(tmp_path / "a.npz", image_size=(8, 12))
    weight = np.random.default_rng(3).normal(size=(2, 3)).astype(np.float32)
    theirs = jax.jit(jax.grad(lambda p: jnp.sum(weight * Towers(True).apply({"params": p}, IMAGES, TEXTS))))(params)
    objective = lambda p: jnp.sum(weight * loaded.model.apply({"params": p}, IMAGES, TEXTS).logits_per_image)  # noqa: E731
    ours = jax.jit(jax.grad(objective))(loaded.variables["params"])
    pairs = {
        ("image", "patches", "kernel"): ("img", "embedding", "kernel"),
        ("project_image", "out", "kernel"): ("img", "head", "kernel"),
        ("text", "embed", "embedding"): ("txt", "Embed_0", "embedding"),
        ("text", "projection", "bias"): ("txt", "head", "bias"),
    }
    for mine, other in pairs.items():
        a, b = ours, theirs
        for key in mine:
            a = a[key]
        for key in other:
            b = b[key]
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg="/".join(mine))
    np.testing.assert_allclose(ours["log_scale"], theirs["t"][0], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(ours["bias"], theirs["b"][0], atol=1e-4, rtol=1e-4)


def test_a_subtree_that_is_not_there_says_what_is(tmp_path):
    write(tmp_path / "a.npz", True, False)
    with pytest.raises(pretrained.WeightsError, match=r"img|no square grid"):
        pretrained.load(f"{tmp_path}/a.npz:image")

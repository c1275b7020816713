"""Checkpoints as big_vision and vision_transformer write them, against small models of Flax's own layers."""

import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vitvlm import pretrained

WIDTH, HEADS = 12, 3


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(WIDTH, name="Dense_1")(nn.gelu(nn.Dense(20, name="Dense_0")(x)))


class Encoder(nn.Module):
    """The encoder under the names of either code base: `together` numbers all parts of a block as one series."""

    together: bool
    posembed: bool

    @nn.compact
    def __call__(self, x):
        if self.posembed:
            x = AddPosition(name="posembed_input")(x)
        for i in range(2):
            x = Block(self.together, name=f"encoderblock_{i}")(x)
        return nn.LayerNorm(name="encoder_norm")(x)


class AddPosition(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + self.param("pos_embedding", nn.initializers.normal(1.0), (1, *x.shape[1:]))


class Block(nn.Module):
    together: bool

    @nn.compact
    def __call__(self, x):
        attention, norm, mlp = (1, 2, 3) if self.together else (0, 1, 0)
        y = nn.LayerNorm(name="LayerNorm_0")(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, name=f"MultiHeadDotProductAttention_{attention}")(y, y)
        y = nn.LayerNorm(name=f"LayerNorm_{norm}")(x)
        return x + Mlp(name=f"MlpBlock_{mlp}")(y)


class MapHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        probe = jnp.tile(self.param("probe", nn.initializers.normal(1.0), (1, 1, WIDTH)), (len(x), 1, 1))
        x = nn.MultiHeadDotProductAttention(HEADS, name="MultiHeadDotProductAttention_0")(probe, x)
        y = nn.LayerNorm(name="LayerNorm_0")(x)
        return (x + Mlp(name="MlpBlock_0")(y))[:, 0]


class Reference(nn.Module):
    """`kind`: big_vision's "gap", "map" or "tok", or "augreg", which is vision_transformer's."""

    kind: str

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(WIDTH, (4, 4), (4, 4), "VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, WIDTH)
        if self.kind != "augreg":
            x = x + self.param("pos_embedding", nn.initializers.normal(1.0), (1, *x.shape[1:]))
        if self.kind in ("tok", "augreg"):
            cls = self.param("cls", nn.initializers.normal(1.0), (1, 1, WIDTH))
            x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        x = Encoder(self.kind == "augreg", self.kind == "augreg", name="Transformer")(x)
        if self.kind == "map":
            x = MapHead(name="MAPHead_0")(x)
        elif self.kind == "gap":
            x = x.mean(axis=1)
        else:
            x = x[:, 0]
        if self.kind == "augreg":
            x = nn.tanh(nn.Dense(7, name="pre_logits")(x))
        return nn.Dense(5, name="head")(x)


def write(kind, path, size=(8, 12), prefix="", dtype=np.float32):
    """The reference's images and logits, and its parameters in a file."""
    images = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    model = Reference(kind)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(1).normal(size=x.shape).astype(np.float32), params)
    params = jax.tree.map(lambda x: np.asarray(x, dtype), params)
    logits = jax.jit(model.apply)({"params": jax.tree.map(lambda x: x.astype(np.float32), params)}, images)
    np.savez(path, **{prefix + name: array for name, array in flatten_dict(params, sep="/").items()})
    return images, logits


@pytest.mark.parametrize("kind", ["gap", "map", "tok", "augreg"])
def test_every_kind_of_head(kind, tmp_path):
    images, expected = write(kind, tmp_path / "a.npz")
    loaded = pretrained.load(tmp_path / "a.npz", image_size=(8, 12))
    np.testing.assert_allclose(jax.jit(loaded.model.apply)(loaded.variables, images).logits, expected, atol=1e-4)
    assert loaded.preprocessing == "decode(3)|resize((8, 12))|normalize('half')"


def test_a_subtree_in_bfloat16(tmp_path):
    images, expected = write("gap", tmp_path / "a.npz", (8, 8), "params/img/", ml_dtypes.bfloat16)
    loaded = pretrained.load(f"{tmp_path}/a.npz:img", scan=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(loaded.model.apply(loaded.variables, images).logits, expected, atol=1e-3)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.npz"
    write("tok", path)
    with pytest.raises(pretrained.WeightsError, match=r"6 positions are no square grid: give image_size="):
        pretrained.load(path)
    with pytest.raises(pretrained.WeightsError, match=r"pos_embedding \(1, 6, 12\), not \(1, 9, 12\)$"):
        pretrained.load(path, image_size=12)
    with pytest.raises(pretrained.WeightsError, match=r"no ViT of big_vision: no embedding/kernel; its top names"):
        np.savez(tmp_path / "b.npz", **{"Transformer/x": np.ones(2)})
        pretrained.load(tmp_path / "b.npz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(pretrained.WeightsError, match=r"no whole \.npz file"):
        pretrained.load(path)
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(pretrained.WeightsError, match="objects"):
        pretrained.load(path)


def test_a_header_that_lies_about_its_size(tmp_path):
    np.savez(tmp_path / "a.npz", **{"embedding/kernel": np.ones((2, 3), np.float32)})
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        content = archive.read("embedding/kernel.npy").replace(b"(2, 3), }       ", b"(2, 3000000000)}")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("embedding/kernel.npy", content)
    with pytest.raises(pretrained.WeightsError, match=r"\(2, 3000000000\) float32 do not fit its 152 bytes"):
        pretrained.load(tmp_path / "a.npz")

"""Files without a config: wrappers, which of several models, what is asked for, and what is no file of weights."""

import logging

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from safetensors.torch import save_file

from vitvlm import pretrained
from vitvlm.core import paths
from vitvlm.pretrained.entries import in_memory
from vitvlm.pretrained.layouts import LAYOUTS
from vitvlm.pretrained.wrappers import unwrap

WIDTH, PATCH, GRID = 8, 2, 3


def vit(seed: int = 0, width: int = WIDTH, **others) -> dict[str, torch.Tensor]:
    """A ViT of one block under timm's names."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + GRID * GRID, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (2 * width, width), "mlp.fc2": (width, 2 * width)}
    for name, shape in linear.items():
        shapes |= {f"blocks.0.{name}.weight": shape, f"blocks.0.{name}.bias": shape[:1]}
    for name in ("norm1", "norm2"):
        shapes |= {f"blocks.0.{name}.{kind}": (width,) for kind in ("weight", "bias")}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in (shapes | others).items()}


def under(prefix, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def cls_of(path, **fields):
    return pretrained.load(path, heads=2, **fields).variables["params"]["cls"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"model": tensors},
        lambda tensors: {"state_dict": under("module.", tensors)},
        lambda tensors: {"model": under("_orig_mod.module.", tensors)},
        lambda tensors: under("backbone.", tensors),
        lambda tensors: {"teacher": under("module.backbone.", tensors)},
        lambda tensors: {"model_ema": tensors, "model": vit(1)},
        lambda tensors: {"state_dict": under("model.", tensors)},
        lambda tensors: under("timm_model.", tensors),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".anything"])
def test_wrappers_are_taken_off(wrap, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    torch.save(wrap(vit()), path)
    np.testing.assert_array_equal(cls_of(path), vit()["cls_token"][0, 0])


def test_what_was_done_is_said(tmp_path, caplog):
    content = {"model": under("module.", vit()), "optimizer": {"state": {0: {"step": torch.ones(1)}}}, "epoch": 3}
    torch.save(content, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING, "absl"):
        loaded = pretrained.load(tmp_path / "a.pth", heads=2)
    assert loaded.source["left_out"] == ("optimizer.state.0.step",)
    (said,) = [record.getMessage() for record in caplog.records if "a.pth" in record.getMessage()]
    for words in (
        *("layout: timm's ViT", "taken off: model, module", "left out: optimizer.state.0.step"),
        *("as published: activation='gelu', norm_eps=1e-06",),
    ):
        assert words in said
    assert "heads" not in said  # which were given


def test_heads_of_a_published_width_are_said(tmp_path, caplog):
    save_file(vit(width=192), tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING, "absl"):
        loaded = pretrained.load(tmp_path / "a.safetensors")
    assert loaded.model.heads == 3 and "as published: heads=3, " in caplog.text


def test_one_of_several_models(tmp_path, caplog):
    content = {name: vit(seed) for seed, name in enumerate(("student", "teacher", "model_ema"))}
    torch.save(content | {"args": {"lr": 1}}, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING, "absl"):
        default = cls_of(tmp_path / "a.pth")
    np.testing.assert_array_equal(default, vit(1)["cls_token"][0, 0])
    assert "read of several models: teacher; subtree='model_ema' reads another" in caplog.text
    for seed, name in enumerate(content):
        np.testing.assert_array_equal(cls_of(tmp_path / "a.pth", subtree=name), vit(seed)["cls_token"][0, 0])
    with pytest.raises(
        pretrained.WeightsError, match=r"a\.pth: no subtree 'model': its tensors lie under student, teacher"
    ):
        pretrained.load(tmp_path / "a.pth", subtree="model")


def test_two_tensors_of_one_name():
    tensors = in_memory({"module.w": np.ones(1), "w": np.zeros(1)})
    with pytest.raises(ValueError, match="two tensors are w"):
        unwrap(tensors)


def test_a_folder_without_a_config(tmp_path):
    torch.save(vit(), tmp_path / "weights.pt")
    (tmp_path / "notes.txt").write_text("mine")
    np.testing.assert_array_equal(cls_of(tmp_path), vit()["cls_token"][0, 0])
    torch.save(vit(1), tmp_path / "more.pth")
    with pytest.raises(
        pretrained.WeightsError, match=r"no config, and several files: give one of more\.pth, weights\.pt"
    ):
        cls_of(tmp_path)
    np.testing.assert_array_equal(cls_of(tmp_path / "more.pth"), vit(1)["cls_token"][0, 0])


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({}, {}, "no published ViT has width 8, and the file does not say its heads: give heads="),
        ({"pos_embed": (1, 7, 8)}, {"heads": 2}, r"7 positions are those of no square grid: give image_size="),
        ({}, {"heads": 2, "hedas": 3}, 'hedas: no such field; did you mean "heads"'),
        ({"extra.weight": (1,)}, {"heads": 2}, r"tensors that no row reads: extra\.weight"),
        ({"blocks.0.attn.q_bias": (8,)}, {"heads": 2}, "a BEiT or EVA, which is not read"),
        ({"head.1.weight": (8,)}, {"heads": 2}, "a linear probe of MAE"),
    ],
)
def test_what_the_file_does_not_say_is_asked_for(change, given, message, tmp_path):
    torch.save(vit(**change), tmp_path / "a.pth")
    with pytest.raises(pretrained.WeightsError, match=message):
        pretrained.load(tmp_path / "a.pth", **given)


def test_clip_asks_for_its_activation_and_heads(tmp_path):
    shapes = {
        "visual.class_embedding": (6,),
        "visual.conv1.weight": (6, 3, 2, 2),
        "visual.positional_embedding": (5, 6),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (12, 6),
        "transformer.resblocks.0.mlp.c_fc.weight": (12, 6),
        "ln_final.weight": (6,),
        "positional_embedding": (4, 6),
        "token_embedding.weight": (9, 6),
        "text_projection": (6, 5),
    }
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "clip.pt")
    with pytest.raises(pretrained.WeightsError, match="towers of width 6 and 6 have no heads of 64: give head_width="):
        pretrained.load(tmp_path / "clip.pt")
    with pytest.raises(pretrained.WeightsError, match=r"does not say its activation .*: give activation='quick_gelu'"):
        pretrained.load(tmp_path / "clip.pt", head_width=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither safetensors nor a file of PyTorch's"),
        (b"<!DOCTYPE html><html>", "a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a pointer of Git LFS"),
        (b"\0" * 257 + b"ustar" + b"\0" * 99, "a tar, as PyTorch 0.1 wrote"),
        (b"RIFF1234WEBP", "neither safetensors nor a file of PyTorch's: it begins with b'RIFF1234'"),
        (b"\x10\0\0\0\0\0\0\0{", "no whole safetensors file"),
    ],
    ids=["empty", "page", "pointer", "tar", "image", "cut"],
)
def test_what_is_no_file_of_weights(content, message, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(pretrained.WeightsError, match=message):
        pretrained.load(tmp_path / "a.pth")


def test_hints_name_what_is_there_and_no_other_family(tmp_path):
    torch.save({"stem.conv.weight": torch.ones(1), "stages.0.gamma": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(pretrained.WeightsError) as found:
        pretrained.load(tmp_path / "a.pth")
    assert str(found.value).endswith("it holds stages.0.gamma, stem.conv.weight")
    assert "did you mean" not in str(found.value)
    assert all(layout.name in str(found.value) for layout in LAYOUTS)


BLOCKS = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
VIT = BLOCKS | {"intermediate_size": 12}
DECODER = {
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 8,
}
SWIN = {"image_size": 8, "patch_size": 2, "embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
IN_MEMORY = {
    "ViTModel": lambda: transformers.ViTModel(transformers.ViTConfig(**VIT)),
    "DeiT": lambda: transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**VIT)),
    "MAE": lambda: transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**VIT, **DECODER)),
    "DINOv2": lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**BLOCKS)),
    "SwiGLU": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**BLOCKS, use_swiglu_ffn=True)
    ),
    "Swin": lambda: transformers.SwinForImageClassification(transformers.SwinConfig(**SWIN)),
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_names_in_memory_are_those_that_are_saved(name, tmp_path):
    theirs = IN_MEMORY[name]()
    theirs.save_pretrained(tmp_path)
    expected = paths.flatten(pretrained.load(tmp_path).variables)
    state = theirs.state_dict()
    assert set(state) != set(load_file(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    torch.save(under("module.", state), tmp_path / "pytorch_model.bin")
    found = paths.flatten(pretrained.load(tmp_path).variables)
    assert found.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)

"""Layouts of files without a config, made from models of `transformers` by renaming, or from recorded ones of timm."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface import array, pixels
from layouts import Layout, published
from layouts_huggingface import CLASSES, IMAGES, MAE, NOISE, logits, written
from safetensors.numpy import load_file
from safetensors.torch import save_file
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

RECORDED = Path(__file__).parent / "recorded"
State = dict[str, torch.Tensor]

# What these files cannot say is as published.
VIT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "layer_norm_eps": 1e-6,
    "image_size": 12,
    "patch_size": 4,
}
DINOV2 = {name: value for name, value in VIT.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
HEADS = {"heads": 3}

TIMM = (
    (r"^(vit|deit|dinov2|dinov2_with_registers)\.", ""),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.", ""),
    (r"^decoder\.(decoder_pos_embed|decoder_embed|decoder_norm|decoder_pred|mask_token)", r"\1"),
    (r"^decoder\.decoder_(?:encoder\.layer|layers)\.", "decoder_blocks."),
    (r"^encoder\.layer\.", "blocks."),
    (r"layernorm_before|layernorm1", "norm1"),
    (r"layernorm_after|layernorm2", "norm2"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"mlp\.weights_in", "mlp.w12"),
    (r"mlp\.weights_out", "mlp.w3"),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
SWIN = (
    (r"^swin\.", ""),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.norm", "patch_embed.norm"),
    (r"^encoder\.", ""),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"attention\.self\.relative", "attn.relative"),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)


def saved(theirs: PreTrainedModel, folder: Path) -> State:
    """Returns the reference's tensors under the names that it saves."""
    inner = folder / "transformers"
    written(theirs, inner)
    return {name: torch.from_numpy(tensor) for name, tensor in load_file(inner / "model.safetensors").items()}


def renamed(state: State, rules: tuple[tuple[str, str], ...], queries: str, fused: str) -> State:
    """Other names; query, key and value, `queries` with their three names, become one tensor, `fused`."""
    found: State = {}
    for name, tensor in state.items():
        place = re.search(queries, name)
        if place and place[1] not in ("query", "q_proj"):
            continue
        if place:
            others = [name[: place.start(1)] + each + name[place.end(1) :] for each in others_of(place[1])]
            tensor = torch.cat([tensor, *(state[each] for each in others)])
            name = name[: place.start()] + fused + name[place.end() :]
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = tensor
    return found


def others_of(query: str) -> tuple[str, str]:
    return ("key", "value") if query == "query" else ("k_proj", "v_proj")


def timm_names(state: State) -> State:
    return renamed(state, TIMM, r"attention\.attention\.(query|key|value)", "attn.qkv")


def swin_names(state: State) -> State:
    return renamed(state, SWIN, r"attention\.self\.(query|key|value)", "attn.qkv")


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def encoded(output: Any) -> dict[str, np.ndarray]:
    """Returns tokens and prefix after the last layer of a ViTModel or a DINOv2 without registers."""
    tokens = array(output.last_hidden_state)
    return {"tokens": tokens[:, 1:], "prefix": tokens[:, :1]}


def vit_model() -> ViTModel:
    return ViTModel(ViTConfig(**VIT), add_pooling_layer=False)


SETTINGS = argparse.Namespace(rate=0.1, path=Path("/data"))


@published("MAE with its decoder, model")
def mae(folder: Path) -> Layout:
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**VIT, **MAE, norm_pix_loss=True))
    state = timm_names(saved(theirs, folder))
    torch.save({"model": state, "epoch": 799, "args": SETTINGS}, folder / "mae.pth")
    output = theirs(pixels(IMAGES), noise=torch.from_numpy(NOISE))
    expected = {"reconstruction": array(output.logits), "mask": array(output.mask)}
    fields = {**HEADS, "decoder_heads": 2, "norm_pix": True}
    return Layout(folder / "mae.pth", (IMAGES, NOISE), expected=expected, fields=fields)


@published("MAE's encoder alone")
def mae_encoder(folder: Path) -> Layout:
    theirs = vit_model()
    torch.save({"model": timm_names(saved(theirs, folder))}, folder / "encoder.pth")
    return Layout(folder / "encoder.pth", (IMAGES,), expected=encoded(theirs(pixels(IMAGES))), fields=HEADS)


def recorded(name: str) -> tuple[State, tuple[np.ndarray, ...], dict[str, np.ndarray]]:
    """Tensors, images and logits of a recorded model of timm."""
    expected = load_file(RECORDED / name / "expected.safetensors")
    state = {key: torch.from_numpy(tensor) for key, tensor in load_file(RECORDED / name / "model.safetensors").items()}
    return state, (expected["images"].transpose(0, 2, 3, 1),), {"logits": expected["logits"]}


@published("MAE fine-tuned, fc_norm and head")
def mae_tuned(folder: Path) -> Layout:
    state, images, expected = recorded("timm_vit_mean")
    torch.save({"model": state, "optimizer": {"state": {}}, "args": SETTINGS}, folder / "tuned.pth")
    return Layout(folder / "tuned.pth", images, expected=expected, fields=HEADS)


@published("DeiT, distilled")
def deit(folder: Path) -> Layout:
    theirs = DeiTForImageClassificationWithTeacher(DeiTConfig(**VIT, **CLASSES))
    torch.save({"model": timm_names(saved(theirs, folder))}, folder / "deit.pth")
    return Layout(folder / "deit.pth", (IMAGES,), expected=logits(theirs(pixels(IMAGES))), fields=HEADS)


@published("DeiT III, gamma_1 and positions without CLS")
def deit_3(folder: Path) -> Layout:
    state, images, expected = recorded("timm_vit_registers")
    old = {re.sub(r"ls([12])\.gamma", r"gamma_\1", name): tensor for name, tensor in state.items()}
    torch.save({"model": old}, folder / "deit3.pth")
    return Layout(folder / "deit3.pth", images, expected=expected, fields=HEADS)


@published("DINO, the backbone")
def dino(folder: Path) -> Layout:
    theirs = vit_model()
    torch.save(timm_names(saved(theirs, folder)), folder / "dino.pth", _use_new_zipfile_serialization=False)
    return Layout(folder / "dino.pth", (IMAGES,), expected=encoded(theirs(pixels(IMAGES))), fields=HEADS)


def dino_head(seed: int) -> State:
    shapes = {"mlp.0.weight": (7, 12), "mlp.0.bias": (7,), "last_layer.weight_g": (9, 1), "last_layer.weight_v": (9, 7)}
    generator = torch.Generator().manual_seed(seed)
    return {f"head.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@published("DINO, a training with teacher and student")
def dino_training(folder: Path) -> Layout:
    theirs = vit_model()
    teacher = timm_names(saved(theirs, folder))
    student = {name: tensor + 1 for name, tensor in teacher.items()}
    content = {
        "student": prefixed("module.backbone.", student) | prefixed("module.", dino_head(0)),
        "teacher": prefixed("backbone.", teacher) | dino_head(1),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
        "epoch": 100,
        "args": SETTINGS,
        "dino_loss": {"center": torch.ones(1, 9)},
    }
    torch.save(content, folder / "training.pth")
    return Layout(folder / "training.pth", (IMAGES,), expected=encoded(theirs(pixels(IMAGES))), fields=HEADS)


@published("DINOv2")
def dinov2(folder: Path) -> Layout:
    theirs = Dinov2Model(Dinov2Config(**DINOV2))
    torch.save(timm_names(saved(theirs, folder)), folder / "dinov2.pth")
    return Layout(folder / "dinov2.pth", (IMAGES,), expected=encoded(theirs(pixels(IMAGES))), fields=HEADS)


@published("DINOv2 with registers and SwiGLU, a training's teacher with its blocks in chunks")
def dinov2_registers(folder: Path) -> Layout:
    config = Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=2, use_swiglu_ffn=True)
    theirs = Dinov2WithRegistersModel(config)
    state = timm_names(saved(theirs, folder))
    chunks = {re.sub(r"^blocks\.(\d)\.", r"blocks.0.\1.", name): tensor for name, tensor in state.items()}
    heads = {"dino_head.mlp.0.weight": torch.ones(2, 12), "ibot_head.last_layer.weight_v": torch.ones(2, 3)}
    torch.save({"teacher": prefixed("backbone.", chunks) | heads}, folder / "teacher_checkpoint.pth")
    tokens = array(theirs(pixels(IMAGES)).last_hidden_state)
    expected = {"tokens": tokens[:, 3:], "prefix": tokens[:, :3]}
    return Layout(folder / "teacher_checkpoint.pth", (IMAGES,), expected=expected, fields=HEADS)


@published("DINOv2's classifiers, backbone. and linear_head")
def dinov2_classifier(folder: Path) -> Layout:
    theirs = Dinov2ForImageClassification(Dinov2Config(**DINOV2, **CLASSES))
    state = timm_names(saved(theirs, folder))
    head = {f"linear_head.{kind}": state.pop(f"head.{kind}") for kind in ("weight", "bias")}
    torch.save(prefixed("backbone.", state) | head, folder / "classifier.pth")
    return Layout(folder / "classifier.pth", (IMAGES,), expected=logits(theirs(pixels(IMAGES))), fields=HEADS)


@published("Swin, of its authors")
def swin(folder: Path) -> Layout:
    sizes = {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], "window_size": 3, "mlp_ratio": 1.5}
    theirs = SwinForImageClassification(SwinConfig(image_size=12, patch_size=2, **sizes, **CLASSES))
    state = swin_names(saved(theirs, folder))
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 9, 9)
    for block in ("layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"):
        state[f"{block}.attn.relative_position_index"] = torch.zeros(9, 9, dtype=torch.long)
    content = {"model": state, "max_accuracy": 81.2, "config": SETTINGS}
    torch.save(content, folder / "swin.pth", _use_new_zipfile_serialization=False)
    return Layout(folder / "swin.pth", (IMAGES,), expected=logits(theirs(pixels(IMAGES))))


@published("timm's ViT, a file alone")
def timm_vit(folder: Path) -> Layout:
    state, images, expected = recorded("timm_vit")
    save_file(state, folder / "vit.safetensors")
    return Layout(folder / "vit.safetensors", images, expected=expected, fields={**HEADS, "image_size": (8, 12)})


@published("timm's training, state_dict and state_dict_ema")
def timm_training(folder: Path) -> Layout:
    state, images, expected = recorded("timm_deit")
    raw = {name: tensor - 1 for name, tensor in state.items()}
    content = {"state_dict": prefixed("module._orig_mod.", raw), "state_dict_ema": prefixed("module.", state)}
    torch.save(content | {"arch": "deit_tiny_distilled_patch16_224"}, folder / "model_best.pth.tar")
    fields = {**HEADS, "image_size": (8, 12)}
    return Layout(folder / "model_best.pth.tar", images, expected=expected, fields=fields)


@published("timm's Swin, a file alone")
def timm_swin(folder: Path) -> Layout:
    state, images, expected = recorded("timm_swin")
    torch.save(state, folder / "swin.pt")
    return Layout(folder / "swin.pt", images, expected=expected, fields={"image_size": 32})


def described(name: str, folder: Path, state: State) -> Path:
    """timm's folder with these tensors."""
    (folder / "config.json").write_text((RECORDED / name / "config.json").read_text())
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@published("timm's Swin before 0.9, a folder")
def timm_old_swin(folder: Path) -> Layout:
    state, images, expected = recorded("timm_swin")
    old = {re.sub(r"layers\.1\.downsample", "layers.0.downsample", name): tensor for name, tensor in state.items()}
    old = {name.replace("head.fc.", "head."): tensor for name, tensor in old.items()}
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    return Layout(described("timm_swin", folder, old), images, expected=expected)


@published("TimmWrapperForImageClassification, a folder")
def timm_wrapper(folder: Path) -> Layout:
    state, images, expected = recorded("timm_vit_registers")
    described("timm_vit_registers", folder, prefixed("timm_model.", state))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    return Layout(folder, images, expected=expected)


@published("torchvision's and timm's ResNet, a file alone")
def resnet(folder: Path) -> Layout:
    state, images, expected = recorded("timm_resnet")
    bare = {name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name}
    torch.save(bare, folder / "resnet.pth", _use_new_zipfile_serialization=False)
    return Layout(folder / "resnet.pth", images, expected=expected)


@published("model.state_dict() of transformers 5 in memory, beside its config.json")
def in_memory(folder: Path) -> Layout:
    theirs = written(ViTForImageClassification(ViTConfig(**VIT, **CLASSES)), folder)
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "checkpoint.pt")
    return Layout(folder / "checkpoint.pt", (IMAGES,), expected=logits(theirs(pixels(IMAGES))))


@published("names of transformers without config.json")
def no_config(folder: Path) -> Layout:
    torch.save(ViTModel(ViTConfig(**VIT)).state_dict(), folder / "checkpoint.pt")
    return Layout(folder / "checkpoint.pt")


@published("BEiT, EVA, Swin V2 and others, a file alone")
def unknown(folder: Path) -> Layout:
    names = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.q_bias", "pos_embed")
    torch.save({"model": dict.fromkeys(names, torch.ones(2, 2))}, folder / "beit.pth")
    return Layout(folder / "beit.pth")

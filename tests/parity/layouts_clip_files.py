"""Layouts of files of OpenAI's CLIP and of open_clip, made from models of `transformers` by renaming."""

from pathlib import Path

import numpy as np
import torch
from huggingface import pixels
from layouts import Layout, published
from layouts_files import RECORDED, VIT, State, renamed, saved
from layouts_huggingface import IMAGES
from layouts_text import CLIP_TEXT, TEXTS, similarity
from transformers import CLIPConfig, CLIPModel

CLIP = (
    (r"^vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding", "visual.conv1"),
    (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm", "visual.ln_pre"),
    (r"^vision_model\.post_layernorm", "visual.ln_post"),
    (r"^vision_model\.encoder\.layers", "visual.transformer.resblocks"),
    (r"^text_model\.encoder\.layers", "transformer.resblocks"),
    (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm", "ln_final"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"layer_norm([12])", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
)


def clip_names(state: State) -> State:
    found = renamed(state, CLIP, r"self_attn\.(q_proj|k_proj|v_proj)\.", "attn.in_proj_")
    found["visual.proj"] = found.pop("visual_projection.weight").T.contiguous()
    found["text_projection"] = found.pop("text_projection.weight").T.contiguous()
    return found


def clip_model() -> CLIPModel:
    vision = VIT | {"layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
    text = CLIP_TEXT | {"layer_norm_eps": 1e-5, "hidden_act": "quick_gelu", "eos_token_id": 2}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10))


def clip_expected(theirs: CLIPModel) -> dict[str, np.ndarray]:
    return similarity(theirs(input_ids=torch.from_numpy(TEXTS).long(), pixel_values=pixels(IMAGES)))


@published("OpenAI's CLIP, a state dict")
def openais_clip(folder: Path) -> Layout:
    theirs = clip_model()
    torch.save(clip_names(saved(theirs, folder)), folder / "clip.pt")
    fields = {"activation": "quick_gelu", "head_width": 4}
    return Layout(folder / "clip.pt", (IMAGES, TEXTS), expected=clip_expected(theirs), fields=fields)


class Held(torch.nn.Module):
    """Tensors under their names, for TorchScript."""

    def __init__(self, state: State):
        super().__init__()
        inner: dict[str, State] = {}
        for name, tensor in state.items():
            first, dot, rest = name.partition(".")
            if dot:
                inner.setdefault(first, {})[rest] = tensor
            elif name in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, torch.nn.Parameter(tensor))
        for name, held in inner.items():
            self.add_module(name, Held(held))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@published("OpenAI's CLIP, its TorchScript archive")
def openais_archive(folder: Path) -> Layout:
    theirs = clip_model()
    numbers = {"input_resolution": 12, "context_length": 9, "vocab_size": 30}
    state = clip_names(saved(theirs, folder)) | {name: torch.tensor(number) for name, number in numbers.items()}
    torch.jit.save(torch.jit.trace(Held(state), torch.ones(1)), folder / "ViT-B-32.pt")
    return Layout(folder / "ViT-B-32.pt", (IMAGES, TEXTS), expected=clip_expected(theirs), fields={"head_width": 4})


@published("OpenAI's CLIP with a ResNet")
def resnet_clip(folder: Path) -> Layout:
    names = ("visual.conv1.weight", "visual.layer1.0.conv1.weight", "visual.attnpool.positional_embedding")
    torch.save(dict.fromkeys((*names, "token_embedding.weight"), torch.ones(2, 2)), folder / "RN50.pt")
    return Layout(folder / "RN50.pt")


@published("open_clip's CustomTextCLIP and CoCa, a file alone")
def custom_text(folder: Path) -> Layout:
    path = RECORDED / "open_clip_custom_text" / "open_clip_model.safetensors"
    (folder / "alone.safetensors").write_bytes(path.read_bytes())
    return Layout(folder / "alone.safetensors")

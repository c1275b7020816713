"""Layouts of files of weights without a config, recognised by the names of their tensors.

One table, LAYOUTS, holds them all: how each is recognised, and what its names and shapes tell about the model. Anything
else is as published, which the log says, or has to be given.
"""

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from vitvlm.pretrained import (
    clip_files,
    huggingface,
    mae_original,
    minigpt4,
    open_clip,
    timm,
    timm_resnet,
    timm_swin,
    timm_vit,
    vit_files,
)
from vitvlm.pretrained import texts as texts_lib
from vitvlm.pretrained.entries import Tensors, WeightsError, blamed
from vitvlm.pretrained.families import Family, Inputs, Json, assemble, image_inputs
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.tables import listed
from vitvlm.pretrained.tensors import FORMATS, open_file, read_json
from vitvlm.pretrained.wrappers import unwrap

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


@dataclasses.dataclass(frozen=True)
class Layout:
    """One published layout.

    Fields:
      name: in messages, and as "format" in `Pretrained.source`.
      marks: names of tensors that a file of this layout has; or patterns of them.
      family: its rows, and its fields by names, shapes and keywords.
      inputs: keywords and tensors to shapes that the model may be called with.
      asked: keywords of this layout that are not fields of the model themselves.
      assumed: fields of the model that the file does not say and that are as published; dotted where they are nested.
      renamed: older names to those of the rows.
      left_out: names of tensors that only training needs, such as projection heads.
    """

    name: str
    marks: Sequence[str]
    family: Family
    inputs: Callable[[Json, Tensors], Inputs]
    asked: Collection[str] = ("image_size",)
    assumed: Sequence[str] = ()
    renamed: Callable[[Tensors], Tensors] = lambda tensors: tensors
    left_out: re.Pattern[str] = re.compile(r"(?!)")
    preprocessing: Callable[[Json, Tensors], str | None] = lambda source, tensors: None
    texts: Callable[[Tensors], texts_lib.Rules | None] = lambda tensors: None

    def has(self, names: Collection[str]) -> bool:
        """Tells whether tensors of these names have this layout."""
        return all(any(re.fullmatch(mark, name) for name in names) for mark in self.marks)


def swin_source(source: Json, tensors: Tensors) -> dict[str, Any]:
    """timm's config.json, as far as the shapes say it.

    The size of the images is in the absolute positions or, in older files, the masks; without, it changes nothing.
    """
    shapes = tensors.shapes()
    _, channels, *patch = shapes["patch_embed.proj.weight"]
    grid = (56, 56)  # of the published patch of 4 at 224
    if "absolute_pos_embed" in shapes:
        grid = (math.isqrt(shapes["absolute_pos_embed"][1]),) * 2
    elif mask := shapes.get("layers.0.blocks.1.attn_mask"):
        grid = (math.isqrt(mask[0] * mask[1]),) * 2
    size = source.get("image_size") or tuple(n * p for n, p in zip(grid, patch))
    size = (size, size) if isinstance(size, int) else tuple(size)
    return {
        "pretrained_cfg": {"input_size": (channels, *size)},
        "num_classes": shapes.get("head.fc.weight", (0,))[0],
    }


def swin_inputs(source: Json, tensors: Tensors) -> Inputs:
    channels, *size = swin_source(source, tensors)["pretrained_cfg"]["input_size"]
    return image_inputs(tuple(size), channels)


def resnet_source(source: Json, tensors: Tensors) -> dict[str, Any]:
    """timm's config.json, as far as the shapes say it."""
    return {"num_classes": tensors.shapes().get("fc.weight", (0,))[0]}


def resnet_inputs(source: Json, tensors: Tensors) -> Inputs:
    return image_inputs(224, tensors.shapes()["conv1.weight"][1])


def _by_shapes(family: Family, described: Callable[[Json, Tensors], dict[str, Any]]) -> Family:
    """A family of timm whose config.json is made from the shapes."""

    def fields(source: Json, tensors: Tensors) -> dict[str, Any]:
        return family.fields(described(source, tensors), tensors)

    return dataclasses.replace(family, fields=fields, config=None, expressible=None)


VIT_MARKS = ("patch_embed.proj.weight", r"blocks\.0\..*attn\.qkv\.weight")
VIT = {"family": vit_files.VIT, "inputs": vit_files.inputs, "renamed": timm_vit.todays_names}
VIT_ASSUMED = ("heads", "activation", "norm_eps")

# The first that has a file's names is the layout that it is of.
LAYOUTS = (
    Layout(
        "MAE",
        ("decoder_embed.weight", "decoder_blocks.0.attn.qkv.weight", *VIT_MARKS),
        mae_original.FAMILY,
        vit_files.inputs,
        assumed=("vit.heads", "decoder_heads", "vit.activation", "vit.norm_eps"),
    ),
    Layout(
        "DINOv2",
        (r"mask_token|register_tokens|blocks\.0\..*mlp\.w12\.weight|linear_head\.weight", *VIT_MARKS),
        **VIT | {"family": vit_files.DINOV2},
        assumed=VIT_ASSUMED,
        left_out=re.compile(r"mask_token|(dino|ibot)_head\..*"),
    ),
    Layout(
        "DINO",
        (r"head\.last_layer\..*", *VIT_MARKS),
        **VIT,
        assumed=VIT_ASSUMED,
        left_out=re.compile(r"head\.(mlp|last_layer)\..*"),
    ),
    Layout("timm's ViT", VIT_MARKS, **VIT, assumed=VIT_ASSUMED),
    Layout(
        "Swin",
        ("patch_embed.proj.weight", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table"),
        _by_shapes(timm_swin.FAMILIES["swin"], swin_source),
        swin_inputs,
        assumed=("image_size", "activation", "norm_eps"),
        renamed=timm_swin.todays_names,
    ),
    Layout(
        "ResNet",
        ("conv1.weight", "bn1.weight", r"layer1\.0\.conv2\.weight"),
        _by_shapes(timm_resnet.FAMILIES["resnet"], resnet_source),
        resnet_inputs,
        asked=(),
        assumed=("norm_eps", "activation"),
    ),
    Layout(
        "OpenAI's CLIP",
        ("visual.class_embedding", "visual.conv1.weight", "token_embedding.weight"),
        clip_files.FAMILY,
        clip_files.inputs,
        asked=("image_size", "activation", "head_width"),
        assumed=("image.heads", "text.heads", "image.activation", "image.norm_eps"),
        preprocessing=clip_files.preprocessing,
        texts=clip_files.tokenizer,
    ),
    Layout(
        "MiniGPT-4",
        minigpt4.MARKS,
        minigpt4.FAMILY,
        minigpt4.inputs,
        asked=minigpt4.ASKED,
        assumed=("image.heads", "connector.heads", "text.heads", "text.norm_eps", "text.length"),
        left_out=minigpt4.LEFT_OUT,
    ),
)

# What is recognised and not read, and why.
REFUSED = {
    r"visual\.layer1\..*": "a CLIP whose image tower is a ResNet; one with a ViT is read",
    r"text\.(transformer|token_embedding)\..*": "open_clip's names of a text tower apart, which computes what "
    f"{open_clip.CONFIG} says: give the folder that has both",
    r"blocks\.\d+\.attn\.(q_bias|rope.*)": "a BEiT or EVA, which is not read",
    r"layers\.0\.blocks\.0\.attn\.cpb_mlp\..*": "a Swin V2, which is not read",
    r"head\.1\.weight": "a linear probe of MAE, whose batch norm lies before its head; the encoder alone is read",
}
# What is recognised where it is without the rest of its layout.
ALONE = {r"llama_proj\.weight": minigpt4.ALONE}
TRANSFORMERS = re.compile(r"(.*\.)?(embeddings|embedder|embed_tokens|wte|shared)\..*")


def open(path: Path, subtree: str = "", **fields: Any) -> Pretrained:
    """A model from one file, of the layout that its tensors' names say; wrappers are taken off.

    A file of a folder's own, or with names of `transformers`, is read with the config beside it.

    Args:
      subtree: entry of the file; with several models, the first of `wrappers.MODELS` by default.
      fields: fields of the model, and what the file does not say.

    Raises WeightsError for a file that is damaged, of no layout that is read, or that does not say enough.
    """
    config = path.parent / huggingface.CONFIG
    own = huggingface.own_tops(read_json(config)) if config.is_file() else ()
    with blamed(path):
        inside = unwrap(open_file(path), subtree, own)
    layout = next((each for each in LAYOUTS if each.has(inside.tensors)), None)
    if (reader := _described(path, layout, inside.tensors)) is not None:
        remarks = [*inside.remarks(), "the config beside it says what its tensors are"]
        return _with_remarks(reader(path.parent, tensors=inside.tensors, **fields), path, remarks, inside.left_out)
    if layout is None:
        raise WeightsError(f"{path}: {_unknown(inside.tensors)}")
    for pattern, what in REFUSED.items():
        if any(re.fullmatch(pattern, name) for name in inside.tensors):
            raise WeightsError(f"{path}: {what}")
    aside = [name for name in inside.tensors if layout.left_out.fullmatch(name)]
    with blamed(path):
        tensors = layout.renamed(inside.tensors.renamed(lambda name: None if name in aside else name))
        asked = {name: value for name, value in fields.items() if name in layout.asked}
        wishes = {name: value for name, value in fields.items() if name not in layout.asked}
        inputs = layout.inputs(fields, tensors)
        section, model, variables = assemble(layout.family, fields, tensors, inputs, wishes)
        loaded = Pretrained(
            model=model,
            variables=variables,
            preprocessing=layout.preprocessing(asked, tensors),
            texts=layout.texts(tensors),
            source={"path": str(path), "format": layout.name, "model": section, "config": {}},
        )
    remarks = [f"layout: {layout.name}", *inside.remarks()]
    if aside:
        remarks.append(f"left out: {listed(aside)}")
    unsaid = [name for name in layout.assumed if name.rpartition(".")[2] not in fields]
    assumed = [f"{name}={operator.attrgetter(name)(model)!r}" for name in unsaid]
    if assumed:
        remarks.append(f"not in the file, so as published: {', '.join(assumed)}")
    return _with_remarks(loaded, path, remarks, (*inside.left_out, *aside))


def alone(folder: Path) -> Path | None:
    """The one file of weights of a folder without a config; None if there is none.

    Raises WeightsError if there are several.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(found) > 1:
        raise WeightsError(f"{folder}: no config, and several files: give one of {listed([p.name for p in found])}")
    return found[0] if found else None


def folder_reader(folder: Path) -> Callable[..., Pretrained] | None:
    """Returns the reader for the config that a folder holds; None if it holds none."""
    if (folder / huggingface.CONFIG).is_file():
        named = "architecture" in read_json(folder / huggingface.CONFIG)
        return timm.open if named else huggingface.open
    return open_clip.open if (folder / open_clip.CONFIG).is_file() else None


def _described(path: Path, layout: Layout | None, tensors: Tensors) -> Callable[..., Pretrained] | None:
    """Returns the reader for the config beside the file if that config describes the file, and None otherwise.

    Raises WeightsError for tensors named as in `transformers` without a config.
    """
    reader = folder_reader(path.parent)
    theirs = layout is None and any(TRANSFORMERS.fullmatch(name) for name in tensors)
    if theirs and reader is None:
        raise WeightsError(
            f"{path}: names of transformers, whose {huggingface.CONFIG} says what they compute: put that beside it "
            f"(model.config.save_pretrained)"
        )
    own = {single for single, _, _ in (*FORMATS, *open_clip.FORMATS)}
    return reader if theirs or path.name in own else None


def _unknown(tensors: Tensors) -> str:
    for pattern, what in (REFUSED | ALONE).items():
        if any(re.fullmatch(pattern, name) for name in tensors):
            return what
    if not tensors:
        return "holds no tensors by name"
    return (
        f"of no layout that is read without a config ({', '.join(each.name for each in LAYOUTS)}); it holds "
        f"{listed(sorted(tensors))}"
    )


def _with_remarks(loaded: Pretrained, path: Path, remarks: list[str], left_out: Sequence[str]) -> Pretrained:
    """Says what was done, in the log and in the source."""
    logging.warning("%s: %s", path, "; ".join(remarks))
    source = {**loaded.source, "path": str(path), "remarks": tuple(remarks)}
    if left_out:
        source["left_out"] = (*source.get("left_out", ()), *left_out)
    return dataclasses.replace(loaded, source=source)

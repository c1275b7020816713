"""Checkpoints of big_vision and vision_transformer: one .npz, or a subtree of it, `file.npz:img`.

They hold no config: sizes, the pooling and the head follow from names and shapes; what does not follow is what that
code base always does (GELU by tanh, eps 1e-6, pixels in [-1, 1]).
"""

import math
import zipfile
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vitvlm.core.config import ConfigError
from vitvlm.models.vit import ViT
from vitvlm.nn.patches import Pair, as_pair
from vitvlm.pretrained.entries import Entry, Tensors, WeightsError, blamed
from vitvlm.pretrained.families import Family, assemble, image_inputs
from vitvlm.pretrained.loaded import Pretrained
from vitvlm.pretrained.tables import Row, Transform, row
from vitvlm.pretrained.transforms import position_rows, same, token

BIG_VISION_POSITIONS, AUGREG_POSITIONS = "pos_embedding", "Transformer/posembed_input/pos_embedding"


def load(path: Path, subtree: str = "", image_size: int | Pair | None = None, **fields: Any) -> Pretrained:
    """A ViT from a .npz file.

    Args:
      subtree: of the file's names, such as "img"; "params/" before it is understood.
      image_size: that the positions were made for, (height, width) in pixels; needed if their grid is not square.

    Raises WeightsError for a file that is damaged or of no known layout.
    """
    tensors = open_npz(path)
    for prefix in ("params/", f"{subtree}/" if subtree else ""):
        if any(name.startswith(prefix) for name in tensors):
            tensors = tensors.under(prefix)
    source = {} if image_size is None else {"image_size": image_size}
    with blamed(path):
        if "embedding/kernel" not in tensors:
            found = ", ".join(sorted({name.split("/")[0] for name in tensors})[:10])
            raise WeightsError(f"{path}: no ViT of big_vision: no embedding/kernel; its top names are: {found}")
        size, channels = _image_size(source, tensors), tensors.shapes()["embedding/kernel"][2]
        section, model, variables = assemble(FAMILY, source, tensors, image_inputs(size, channels), fields)
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=f"decode({channels})|resize({size})|normalize('half')",
        texts=None,
        source={"path": str(path), "format": "npz", "model": section, "config": source},
    )


def open_npz(path: Path) -> Tensors:
    """The arrays of a .npz by name, without pickles; a bfloat16 array, which .npz cannot name, is understood.

    Raises WeightsError for a file that is damaged, or an array whose header does not fit its size.
    """
    try:
        archive = zipfile.ZipFile(path)
        return Tensors(
            {
                member.filename.removesuffix(".npy"): Entry(*_header(path, archive, member))
                for member in archive.infolist()
            }
        )
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: no whole .npz file: {error}; copy it again") from None


def _header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], Any]:
    """The array's shape, and a function that reads it."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        start = file.tell()
    if dtype.hasobject or (fortran and len(shape) > 1):
        raise WeightsError(f"{path}: {member.filename}: objects and Fortran order are not read")
    if start + math.prod(shape) * dtype.itemsize != member.file_size:
        raise WeightsError(f"{path}: {member.filename}: {shape} {dtype} do not fit its {member.file_size:,} bytes")
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype
    return shape, partial(_read, archive, member, start, dtype, shape)


def _read(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, start: int, dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    try:
        return np.frombuffer(archive.read(member), dtype, offset=start).reshape(shape)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{archive.filename}: damaged: {error}; copy it again") from None


def vit_fields(source: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Fields of `models.build("vit", ...)` from the names and shapes of the arrays."""
    shapes = tensors.shapes()
    height, width, _, features = shapes["embedding/kernel"]
    block = _block_names(tensors)
    depth = 1 + max(int(name.split("/")[1].rpartition("_")[2]) for name in shapes if "/encoderblock_" in name)
    first = "Transformer/encoderblock_0"
    return {
        "width": features,
        "depth": depth,
        "heads": shapes[f"{first}/{block['attention']}/query/kernel"][1],
        "mlp_width": shapes[f"{first}/{block['mlp']}/Dense_0/kernel"][1],
        "patch_size": (height, width),
        "image_size": _image_size(source, tensors),
        "num_classes": shapes["head/bias"][0] if "head/bias" in shapes else 0,
        "pool": "map" if "MAPHead_0/probe" in shapes else "cls" if "cls" in shapes else "gap",
        "positions": "learned" if {BIG_VISION_POSITIONS, AUGREG_POSITIONS} & set(shapes) else "sincos",
        "special_positions": BIG_VISION_POSITIONS not in shapes,  # big_vision adds none to CLS
        "representation": shapes["pre_logits/bias"][0] if "pre_logits/bias" in shapes else None,
        "activation": "gelu_tanh",
        "norm_eps": 1e-6,
        "scan": False,
    }


def _image_size(source: Mapping[str, Any], tensors: Tensors) -> Pair:
    """As it was asked for; otherwise that of a square grid of positions."""
    if "image_size" in source:
        return as_pair(source["image_size"])
    shapes = tensors.shapes()
    height, width = shapes["embedding/kernel"][:2]
    name = next((name for name in (BIG_VISION_POSITIONS, AUGREG_POSITIONS) if name in shapes), None)
    if name is None:
        raise ConfigError("the positions are not in the file: give image_size=")
    patches = shapes[name][1] - (name == AUGREG_POSITIONS and "cls" in shapes)
    side = math.isqrt(patches)
    if side * side != patches:
        raise ConfigError(f"{patches} positions are no square grid: give image_size=(height, width)")
    return side * height, side * width


def _block_names(names: Collection[str]) -> dict[str, str]:
    """What the parts of a block are called: big_vision numbers each kind apart, vision_transformer all together."""
    together = any("/MultiHeadDotProductAttention_1/" in name for name in names)
    if together:
        return {"attention": "MultiHeadDotProductAttention_1", "mlp": "MlpBlock_3", "mlp_norm": "LayerNorm_2"}
    return {"attention": "MultiHeadDotProductAttention_0", "mlp": "MlpBlock_0", "mlp_norm": "LayerNorm_1"}


def vit_rows(model: ViT, names: Collection[str]) -> Iterator[Row]:
    """A ViT of either code base."""
    block = _block_names(names)
    yield from _dense("embedding", "patches", same)
    if model.has_cls:
        yield row("cls", "cls", token)
    if model.positions == "learned":
        theirs = AUGREG_POSITIONS if AUGREG_POSITIONS in names else BIG_VISION_POSITIONS
        yield from position_rows(theirs, "learned", model.table_grid, model.width, model.placed)
    for i in range(model.depth):
        theirs, ours = f"Transformer/encoderblock_{i}", f"blocks_{i}"
        yield from _norm(f"{theirs}/LayerNorm_0", f"{ours}/attention_norm")
        yield from _attention(f"{theirs}/{block['attention']}", f"{ours}/attention", model.heads)
        yield from _norm(f"{theirs}/{block['mlp_norm']}", f"{ours}/mlp_norm")
        yield from _mlp(f"{theirs}/{block['mlp']}", f"{ours}/mlp")
    yield from _norm("Transformer/encoder_norm", "norm")
    if model.pool == "map":
        yield row("MAPHead_0/probe", "pool/probe", _first)
        yield from _attention("MAPHead_0/MultiHeadDotProductAttention_0", "pool/attention", model.heads)
        yield from _norm("MAPHead_0/LayerNorm_0", "pool/mlp_norm")
        yield from _mlp("MAPHead_0/MlpBlock_0", "pool/mlp")
    if model.representation:
        yield from _dense("pre_logits", "representation", same)
    if model.num_classes:
        yield from _dense("head", "head", same)


def _dense(theirs: str, ours: str, kernel: Transform, bias: Transform = same) -> Iterator[Row]:
    yield row(f"{theirs}/kernel", f"{ours}/kernel", kernel)
    yield row(f"{theirs}/bias", f"{ours}/bias", bias)


def _norm(theirs: str, ours: str) -> Iterator[Row]:
    yield row(f"{theirs}/scale", f"{ours}/scale", same)
    yield row(f"{theirs}/bias", f"{ours}/bias", same)


def _mlp(theirs: str, ours: str) -> Iterator[Row]:
    yield from _dense(f"{theirs}/Dense_0", f"{ours}/up", same)
    yield from _dense(f"{theirs}/Dense_1", f"{ours}/down", same)


def _attention(theirs: str, ours: str, heads: int) -> Iterator[Row]:
    """Their kernels keep the heads apart: [D, K, d] in, [K, d, D] out."""
    split = Transform(read=lambda x: (x.reshape(len(x), -1),), write=lambda x: (x.reshape(len(x), heads, -1),))
    split_bias = Transform(read=lambda x: (x.reshape(-1),), write=lambda x: (x.reshape(heads, -1),))
    joined = Transform(
        read=lambda x: (x.reshape(-1, x.shape[-1]),), write=lambda x: (x.reshape(heads, -1, x.shape[-1]),)
    )
    for name in ("query", "key", "value"):
        yield from _dense(f"{theirs}/{name}", f"{ours}/{name}", split, split_bias)
    yield from _dense(f"{theirs}/out", f"{ours}/out", joined)


_first = Transform(read=lambda x: (x[0],), write=lambda x: (x[None],))  # [1, 1, D], [1, D]

FAMILY = Family("vit", ViT, vit_fields, vit_rows, lambda model, params: {})

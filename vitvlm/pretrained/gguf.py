"""GGUF files, the format of llama.cpp, read only: decoders, quantized or not, with their tokenizer and chat template.

The metadata say what a config.json says, and the tensors are those of `transformers` under other names, so both are
translated and read by the tables of `transformers`' architectures. See `gguf_architectures` for what is read.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vitvlm.core import gguf as headers
from vitvlm.pretrained import config_defaults, huggingface
from vitvlm.pretrained.entries import Entry, Tensors, WeightsError, blamed
from vitvlm.pretrained.families import assemble
from vitvlm.pretrained.gguf_architectures import ARCHITECTURES
from vitvlm.pretrained.gguf_translation import Architecture, Change, Metadata
from vitvlm.pretrained.loaded import Pretrained

# Types that are read: numbers as they are, and those that are dequantized to float32.
FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def open(path: Path, **fields: Any) -> Pretrained:
    """A decoder with its weights and tokenizer; `loaded.chat_template` is its chat template.

    What is quantized becomes float32; F16 and BF16 stay as they are.

    Args:
      path: model.gguf; model.gguf.part00, where one file was cut into parts; or the first of several of `gguf-split`,
        model-00001-of-00003.gguf. The others lie beside it.
      fields: fields of the model that leave its parameters as they are, such as scan, remat or dtype.

    Raises WeightsError for a file that is cut or damaged, or of an architecture or type that is not read, listing every
    tensor that is missing, unused or of another shape; ImportError without the package `gguf`.
    """
    with blamed(path):
        header = _read(path)
        architecture = _architecture(header)
        own = Tensors(dict(entries(header)))
        metadata = Metadata(header.metadata, own)
        source = {"architectures": [architecture.theirs], **architecture.config(metadata)}
        tensors = Tensors(dict(_translated(architecture, metadata, own)))
        metadata.check_all_read()
        family = huggingface.FAMILIES[architecture.theirs]
        full = config_defaults.completed(family.model_type, source)
        section, model, variables = assemble(family, full, tensors, family.inputs(full), fields)
        texts = _texts(header, path, model.length, model.vocab_size)
    return Pretrained(
        model=model,
        variables=variables,
        preprocessing=None,
        texts=texts,
        source={"path": str(path), "format": "gguf", "model": section, "config": source},
    )


def alone(folder: Path) -> Path | None:
    """The one GGUF of a folder, or the first part of it; None if there is none.

    Raises WeightsError if there are several.
    """
    files = (path for path in folder.iterdir() if headers.is_gguf(path) and path.is_file())
    found = sorted(path for path in files if _is_first(path))
    if len(found) > 1:
        raise WeightsError(f"{folder}: holds several models: give one of {', '.join(path.name for path in found)}")
    return found[0] if found else None


def _is_first(path: Path) -> bool:
    cut, split = headers.PART.fullmatch(path.name), headers.SPLIT.fullmatch(path.name)
    return (int(cut[2]) == 0 and not path.with_name(cut[1]).exists()) if cut else split is None or int(split[2]) == 1


def _read(path: Path) -> headers.Header:
    """The header of a model, with the tensors of all its files. Raises WeightsError."""
    try:
        first = headers.read(path)
        files = headers.split_files(first)
        for header in [headers.read(file) for file in files[1:]]:
            if twice := sorted(first.tensors.keys() & header.tensors.keys()):
                raise WeightsError(f"{header.path}: has a tensor that an earlier file has too: {twice[0]}")
            moved = {
                name: dataclasses.replace(info, start=info.start + first.size) for name, info in header.tensors.items()
            }
            first = dataclasses.replace(first, tensors={**first.tensors, **moved}, parts=(*first.parts, *header.parts))
        return first
    except headers.GGUFError as error:
        raise WeightsError(str(error)) from None


def _architecture(header: headers.Header) -> Architecture:
    name = header.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise WeightsError(f"{header.path}: architecture {name!r}; there is: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    return architecture(header.metadata) if callable(architecture) else architecture


def entries(header: headers.Header) -> Iterator[tuple[str, Entry]]:
    """Yields the tensors by their names, as float arrays. Raises WeightsError for a type that is not read, or a cut."""
    try:
        import gguf
    except ImportError:
        raise ImportError("GGUF files are dequantized by the package gguf: pip install 'vitvlm[gguf]'") from None
    numbers = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    size = header.size
    for name, info in header.tensors.items():
        kind = numbers.get(info.kind, str(info.kind))
        if kind not in FLOATS and kind not in QUANTIZED:
            known = ", ".join([*FLOATS, *QUANTIZED])
            raise WeightsError(f"{header.path}: {name} is of type {kind}, which is not read; there is: {known}")
        block, length = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(info.kind)]
        if not info.shape or info.shape[-1] % block:
            raise WeightsError(f"{header.path}: damaged: {name} {info.shape} is no whole number of blocks of {block}")
        count = math.prod(info.shape) // block * length
        if info.start + count > size:
            raise WeightsError(
                f"{header.path}: cut: {name} ends at byte {info.start + count:,}, the file at {size:,}; copy it again"
                + (", and all its parts" if len(header.parts) > 1 or headers.PART.fullmatch(header.path.name) else "")
            )
        read = functools.partial(_dequantized, header, info, count, kind)
        yield name, Entry(info.shape, FLOATS.get(kind, FLOATS["F32"]), read)


def _dequantized(header: headers.Header, info: headers.TensorInfo, count: int, kind: str) -> np.ndarray:
    import gguf

    data = header.bytes(info.start, count)
    if kind in FLOATS:
        return data.view(FLOATS[kind]).reshape(info.shape)
    rows = data.reshape(*info.shape[:-1], -1)
    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(info.kind))


def _translated(architecture: Architecture, metadata: Metadata, tensors: Tensors) -> Iterator[tuple[str, Entry]]:
    """Yields the tensors by the names of `transformers`, as it has them."""
    for name, entry in tensors.entries.items():
        for theirs, shape, change in architecture.translate(name, entry.shape, metadata):
            yield theirs, Entry(shape, entry.dtype, functools.partial(_changed, entry, change))


def _changed(entry: Entry, change: Change) -> np.ndarray:
    return change(entry.read())


def _texts(header: headers.Header, path: Path, length: int, vocab_size: int) -> Mapping[str, Any] | None:
    """The arguments of `tokenizers.open`; None for a file without a tokenizer.

    Raises WeightsError for more tokens than the model has vectors for.
    """
    tokens: Sequence[str] = header.metadata.get("tokenizer.ggml.tokens", ())
    if len(tokens) > vocab_size:
        raise WeightsError(f"{path}: damaged: a tokenizer of {len(tokens):,} tokens, and vectors of {vocab_size:,}")
    return {"tokenizer": f"gguf:{path}", "length": length} if tokens else None

"""Small GGUF files, by the writer of the package `gguf`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WRITE = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}


def write(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray] | None = None,
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Writes a file; `kinds` are the types of tensors that are quantized."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        value = value.tolist() if isinstance(value, np.ndarray) else value
        getattr(writer, WRITE[type(value)])(key, value)
    for name, tensor in (tensors or {}).items():
        kind = (kinds or {}).get(name)
        if kind is None:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
        else:
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(tensor), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def vocabulary(tokens: Sequence[str], types: Sequence[int], kind: str = "gpt2", **others: Any) -> dict[str, Any]:
    """The metadata of a tokenizer; `others` by the last part of their keys: pre, merges, scores, eos_token_id …"""
    return {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": [int(each) for each in types],
        **{f"tokenizer.ggml.{name}": value for name, value in others.items()},
    }

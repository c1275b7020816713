"""Translation of GGUF files: metadata as a config.json says them, and tensors by the names of `transformers`.

llama.cpp's converter changes some tensors: LLaMA's queries and keys are stored for rotary positions of neighbouring
channels, Gemma's norms have the 1 added that its code adds, and GPT-2's kernels are turned round.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vitvlm.pretrained.entries import Shape, Tensors, WeightsError

Change = Callable[[np.ndarray], np.ndarray]
Translation = tuple[str, Shape, Change]  # name and shape in `transformers`, and what makes it of the file's

BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"  # by which frequencies are divided, of LLaMA 3.1
# What files say and a model does not need to know.
IDLE = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"}
NEUTRAL = {"attention.causal": True, "rope.scaling.attn_factor": 1.0}  # the only values that are understood
MISSING = object()


class Metadata:
    """Values that describe a file's model, by keys without the architecture's name; keeps which were asked for."""

    def __init__(self, values: Mapping[str, Any], tensors: Tensors):
        """`tensors` are the file's, by its own names."""
        self.name = values["general.architecture"]
        self.values = {
            key.removeprefix(f"{self.name}."): value for key, value in values.items() if key.startswith(f"{self.name}.")
        }
        self.tensors = tensors
        self.read: set[str] = set()

    def __call__(self, key: str, default: Any = MISSING) -> Any:
        """Returns a number or text. Raises KeyError if it is not there, WeightsError if it differs by layer."""
        self.read.add(key)
        value = self.values.get(key, default)
        if value is MISSING:
            raise KeyError(f"{self.name}.{key}")
        if isinstance(value, np.ndarray | list):
            if len(set(np.asarray(value).tolist())) != 1:
                raise WeightsError(f"{self.name}.{key} differs by layer, which is not read: {list(value)!r:.60}")
            value = np.asarray(value).tolist()[0]
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def check_all_read(self) -> None:
        """Raises WeightsError for a key that nobody asked for: the model would be another one."""
        known = self.read | IDLE
        left = [
            key
            for key, value in self.values.items()
            if key not in known and (value != NEUTRAL[key] if key in NEUTRAL else np.any(value))
        ]
        if left:
            value = self.values[left[0]]
            raise WeightsError(f"says {self.name}.{left[0]} = {value!r:.60}, which is not read for this architecture")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp's.

    Fields:
      theirs: the architecture of `transformers`.
      config: what a config.json says besides "architectures".
      top, block: names of tensors outside and inside blocks, without "weight" and "bias".
      blocks: name of a block, with its number.
      change: (name in the file, metadata) -> what makes the tensor of `transformers` of the file's, None for nothing.
      fused: tensors of a block that are queries, keys and values in one, and the three names.
    """

    theirs: str
    config: Callable[[Metadata], dict[str, Any]]
    block: Mapping[str, str]
    top: Mapping[str, str]
    blocks: str = "model.layers.{}."
    change: Callable[[str, Metadata], Change | None] = lambda name, metadata: None
    fused: Mapping[str, tuple[str, str, str]] = dataclasses.field(default_factory=dict)

    def translate(self, name: str, shape: Shape, metadata: Metadata) -> Iterator[Translation]:
        """Yields what a tensor of the file is in `transformers`; under its own name if it is not known."""
        if name == ROPE_FACTORS:
            return  # part of the config
        found = BLOCK.fullmatch(name)
        inside, (stem, _, end) = found is not None, name.rpartition(".")
        known, prefix = (self.block, self.blocks.format(found[1])) if inside else (self.top, "")
        stem = found[2] if inside else stem
        if inside and stem in self.fused:
            yield from _split([f"{prefix}{each}.{end}" for each in self.fused[stem]], shape, metadata)
            return
        change = self.change(stem, metadata)
        theirs = f"{prefix}{known[stem]}.{end}" if stem in known else name
        turned = change is transposed and len(shape) == 2
        yield theirs, tuple(reversed(shape)) if turned else shape, _same if change is None else change


def _same(array: np.ndarray) -> np.ndarray:
    return array


def transposed(array: np.ndarray) -> np.ndarray:
    """A kernel with the inputs first, as GPT-2's are in `transformers`; a bias as it is."""
    return array.T


def minus_one(array: np.ndarray) -> np.ndarray:
    return array - np.ones((), array.dtype)


def halves(heads: int) -> Change:
    """Rows of each head, stored as pairs of neighbours, as two halves: [heads 2 d/2, …] for rotary positions."""

    def change(array: np.ndarray) -> np.ndarray:
        pairs = array.reshape(heads, -1, 2, *array.shape[1:])
        return pairs.swapaxes(1, 2).reshape(array.shape)

    return change


def _split(names: list[str], shape: Shape, metadata: Metadata) -> Iterator[Translation]:
    """Yields the parts of queries, keys and values in one."""
    width = head_dim(metadata)
    sizes = [metadata("attention.head_count") * width, *[kv_heads(metadata) * width] * 2]
    places = np.cumsum([0, *sizes]).tolist()
    for name, start, end in zip(names, places, places[1:]):
        yield name, (end - start, *shape[1:]), lambda array, start=start, end=end: array[start:end]


def head_dim(metadata: Metadata) -> int:
    width, heads = metadata("embedding_length"), metadata("attention.head_count")
    head = metadata("attention.key_length", width // heads)
    if metadata("attention.value_length", head) != head:
        raise WeightsError(f"{metadata.name}.attention.value_length differs from key_length, which is not read")
    return head


def kv_heads(metadata: Metadata) -> int:
    return metadata("attention.head_count_kv", metadata("attention.head_count"))


def rope_scaling(metadata: Metadata, theta: float, rotated: int) -> dict[str, Any] | None:
    """The entry `rope_scaling` of a config.json. Raises WeightsError for a kind that is not read."""
    kind = metadata("rope.scaling.type", "none")
    factor = metadata("rope.scaling.factor", metadata("rope.scale_linear", None))
    original = metadata("rope.scaling.original_context_length", None)
    beta = {f"beta_{end}": metadata(f"rope.scaling.yarn_beta_{end}", None) for end in ("fast", "slow")}
    if ROPE_FACTORS in metadata.tensors:
        return _llama3(metadata, theta, rotated)
    if kind == "none" and "rope.scale_linear" in metadata.values:
        kind = "linear"
    if kind == "none" or factor in (None, 0, 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        found = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **beta}
        return {name: value for name, value in found.items() if value is not None}
    raise WeightsError(f"rotary positions scaled by {kind!r}; there is: none, linear, yarn, and LLaMA 3's factors")


def _llama3(metadata: Metadata, theta: float, rotated: int) -> dict[str, Any]:
    """LLaMA 3's scaling, of which the file holds the factors that come of it and not what they come from.

    All published models have the same bounds; the factors have to be those that follow.
    """
    factors = np.asarray(metadata.tensors[ROPE_FACTORS], np.float64)
    low, high, original = 1.0, 4.0, 8192
    turns = original * theta ** -(np.arange(0, rotated, 2) / rotated) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    factor = float(factors.max())
    if factors.shape != turns.shape or not np.allclose(factors, 1 / ((1 - kept) / factor + kept), rtol=1e-4):
        raise WeightsError(f"{ROPE_FACTORS}: not LLaMA 3's factors for a context of {original}; others are not read")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }

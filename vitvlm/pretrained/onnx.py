"""DINOv2 in an ONNX file: the weights and sizes of its graph, which is only parsed; nothing in it is run.

Such a file is PyTorch's export of a Dinov2Model of `transformers`, perhaps as a part of a larger model, which is left
where it is. The export keeps the names of biases, norms and tokens, and of the modules that its nodes come from. It
renames the kernels of linear layers and cuts the positions in two; both are found by the nodes that read them.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitvlm.core.files import DAMAGE, read_bytes
from vitvlm.models.vit import ViT
from vitvlm.pretrained.dinov2 import dinov2_rows
from vitvlm.pretrained.entries import WeightsError, blamed, checked_shape, in_memory
from vitvlm.pretrained.families import Family, assemble, image_inputs
from vitvlm.pretrained.loaded import Pretrained

LARGEST = 2**31  # bytes; one message of protobuf can have no more
CLS = "embeddings.cls_token"
POSITIONS = "embeddings.position_embeddings"

# Operations of the exported MLP that only one activation has.
ACTIVATIONS = {"Erf": "gelu", "Gelu": "gelu", "Tanh": "gelu_tanh", "Relu": "relu", "Sigmoid": "silu"}


def open(path: Path, **fields: Any) -> Pretrained:
    """Loads a ViT with its weights; the file does not describe the preprocessing.

    Args:
      fields: fields of the model. Those that leave its parameters as they are: scan, remat, dtype, dropout. And those
        that could not be seen in the graph, which an error then asks for: heads, norm_eps, activation.

    Raises WeightsError for a file that is damaged or holds no DINOv2, listing what is missing, unused or of another
    shape; ImportError without the package `onnx` (`pip install 'vitvlm[onnx]'`).
    """
    graph = Graph.read(path)
    with blamed(path):
        try:
            seen = {name: value for name, value in graph.fields().items() if name not in fields}
        except KeyError as error:
            raise WeightsError(f"{path}: has no tensor {error.args[0]}") from None
        if unseen := [name for name, value in seen.items() if value is None]:
            raise WeightsError(
                f"{path}: its graph does not show {', '.join(unseen)}: give them, as in load(path, heads=6)"
            )
        family = Family("vit", ViT, lambda source, tensors: seen, dinov2_rows)
        tensors = in_memory(graph.tensors())
        section, model, variables = assemble(
            family, {}, tensors, image_inputs(seen["image_size"], graph.channels), fields
        )
    return Pretrained(model, variables, None, None, {"path": str(path), "format": "onnx", "model": section})


class Graph:
    """The part of a file's graph that is a Dinov2Model, by the names that its modules have in `transformers`."""

    def __init__(self, nodes: Mapping[str, Any], arrays: Mapping[str, np.ndarray], constants: Mapping[str, np.ndarray]):
        """`nodes` by the path of their module and operation; `arrays` and `constants` by the names that nodes read."""
        self.nodes = nodes
        self.arrays = arrays
        self.constants = constants

    @classmethod
    def read(cls, path: Path) -> "Graph":
        try:
            import onnx
            from google.protobuf.message import DecodeError
        except ImportError:
            raise ImportError("ONNX files are parsed by the package onnx: pip install 'vitvlm[onnx]'") from None
        try:
            graph = onnx.load_model_from_string(read_bytes(path, LARGEST)).graph
        except (OSError, DecodeError) as error:
            raise WeightsError(f"{path}: not an ONNX file: {error}") from None
        with blamed(path):  # of texts that are no UTF-8, for one
            return cls._of(path, graph)

    @classmethod
    def _of(cls, path: Path, graph: Any) -> "Graph":
        whole = next((each.name.removesuffix(CLS) for each in graph.initializer if each.name.endswith(CLS)), None)
        if whole is None:
            raise WeightsError(f"{path}: has no tensor …{CLS}: it holds no DINOv2 with the names of transformers")
        scope = "/" + whole.replace(".", "/")
        return cls(
            nodes={node.name.removeprefix(scope): node for node in graph.node if node.name.startswith(scope)},
            arrays={each.name.removeprefix(whole): _array(path, each) for each in graph.initializer},
            constants={
                node.output[0]: _array(path, node.attribute[0].t)
                for node in graph.node
                if node.op_type == "Constant"
                and node.output
                and [attribute.name for attribute in node.attribute[:1]] == ["value"]
            },
        )

    @property
    def channels(self) -> int:
        return self._patches.shape[1]

    @property
    def _patches(self) -> np.ndarray:
        """Kernel of the patch embedding, [D, C, p, q]."""
        return self.arrays["embeddings.patch_embeddings.projection.weight"]

    def tensors(self) -> dict[str, np.ndarray]:
        """All weights by their names in `transformers`."""
        parts = ("embeddings.", "encoder.", "layernorm.")
        named = {name: array for name, array in self.arrays.items() if name.startswith(parts)}
        kernels = {
            path.removesuffix("/MatMul").replace("/", ".") + ".weight": self.arrays[node.input[1]].T
            for path, node in self.nodes.items()
            if path.endswith("/MatMul") and node.input[1] in self.arrays
        }
        return {**named, **kernels, POSITIONS: self._positions()}

    def _positions(self) -> np.ndarray:
        """The table [1, 1 + N, D]: the two renamed arrays [1, n, D] of the embeddings, CLS first."""
        parts = [
            self.arrays[name]
            for path, node in self.nodes.items()
            for name in node.input
            if path.startswith("embeddings/") and name in self.arrays and not name.startswith("embeddings.")
        ]
        return np.concatenate(sorted(parts, key=lambda part: part.shape[1]), axis=1)

    def fields(self) -> dict[str, Any]:
        """Fields of a ViT; None where the graph does not show one. The position table is taken for a square."""
        width, _, *patch = self._patches.shape
        side = math.isqrt(self._positions().shape[1] - 1)
        blocks = {path.split("/")[1] for path in self.nodes if path.startswith("encoder/layer.")}
        operations = [node.op_type for node in self._block("mlp/")]
        return {
            "width": width,
            "depth": len(blocks),
            "heads": self._heads(width),
            "mlp_width": self.arrays["encoder.layer.0.mlp.fc1.bias"].shape[0],
            "patch_size": tuple(patch),
            "image_size": (side * patch[0], side * patch[1]),
            "qkv_bias": "encoder.layer.0.attention.attention.query.bias" in self.arrays,
            "activation": next((ACTIVATIONS[op] for op in operations if op in ACTIVATIONS), None),
            "norm_eps": self._eps(),
            "layer_scale": 1.0,  # its initial value, which weights do not show; theirs is 1 by default
            "scan": False,
        }

    def _block(self, part: str) -> Iterator[Any]:
        """The nodes of a part of the first block."""
        return (node for path, node in self.nodes.items() if path.startswith(f"encoder/layer.0/{part}"))

    def _heads(self, width: int) -> int | None:
        """K of the shape [B, N, K, d], put together from single numbers, that queries are brought to."""
        for known in self._known("attention/attention/", "Concat"):
            if len(known) == 2 and known[0] * known[1] == width:
                return int(known[0])
        return None

    def _eps(self) -> float | None:
        """The number that is added to the variance, to the float32 digits that it was written with."""
        for known in self._known("norm1/", "Add"):
            if len(known) == 1:
                return float(f"{known[0]:.6g}")
        return None

    def _known(self, part: str, operation: str) -> Iterator[list[float]]:
        """The constant numbers that each node of that operation in a part of the first block is given."""
        for node in self._block(part):
            if node.op_type == operation:
                yield [self.constants[name].item() for name in node.input if name in self.constants]


def _array(path: Path, tensor: Any) -> np.ndarray:
    """The numbers of a tensor that lies in the file itself. Raises WeightsError."""
    from onnx.numpy_helper import to_array

    where = f"{path}: {tensor.name:.200}"
    if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
        raise WeightsError(f"{where}: keeps its numbers in another file, which is not read: save the model as one file")
    if tensor.HasField("segment"):
        raise WeightsError(f"{where}: is a part of a tensor, which is not read")
    checked_shape(tensor.dims, where)
    try:
        array = to_array(tensor)
    except DAMAGE as error:
        raise WeightsError(f"{where}: damaged: {error}") from None
    if array.dtype.hasobject:
        raise WeightsError(f"{where}: holds texts, not numbers")
    return array

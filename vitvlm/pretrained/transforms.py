"""The ways in which others' tensors differ from our parameters, and the rows of the layers that all families have."""

from collections.abc import Iterator, Sequence

import numpy as np

from vitvlm.nn.patches import Pair
from vitvlm.nn.positions import sincos_grid
from vitvlm.pretrained.tables import Arrays, Row, TableError, Transform, row

same = Transform(read=lambda x: (x,), write=lambda x: (x,))
linear = Transform(read=lambda x: (x.T,), write=lambda x: (x.T,))  # [out, in], [in, out]
token = Transform(read=lambda x: (x[0, 0],), write=lambda x: (x[None, None],))  # [1, 1, D], [D]
tokens = Transform(read=lambda x: (x[0],), write=lambda x: (x[None],))  # [1, R, D], [R, D]
token_row = Transform(read=lambda x: (x[None],), write=lambda x: (x[0],))  # [D], [1, D]
scalar = Transform(read=lambda x: (x.reshape(()),), write=lambda x: (x[None],))  # [1], []
pointwise = Transform(read=lambda x: (x[:, :, 0, 0].T,), write=lambda x: (x.T[:, :, None, None],))  # [out, in, 1, 1]
conv = Transform(  # [out, in, h, w], [h, w, in, out]; of a depthwise one, in is 1 for both
    read=lambda x: (x.transpose(2, 3, 1, 0),), write=lambda x: (x.transpose(3, 2, 0, 1),)
)


def _log_inverse(temperature: np.ndarray) -> Arrays:
    if not temperature > 0:
        raise TableError(f"a temperature of {temperature}: logits are divided by it, so it must be above 0")
    return (-np.log(temperature),)


temperature = Transform(read=_log_inverse, write=lambda log_scale: (np.exp(-log_scale),))  # T of logits / T, -log T

batches_seen = Transform(read=lambda x: (), write=lambda: (np.zeros((), np.int64),))  # PyTorch's counter: none of ours


def split(parts: int) -> Transform:
    """Arrays joined along the first axis, such as fused query, key and value."""
    return Transform(read=lambda x: tuple(np.split(x, parts)), write=lambda *x: (np.concatenate(x),))


def split_linear(parts: int) -> Transform:
    """Kernels [parts D, in] joined likewise; ours [in, D] each."""
    return Transform(
        read=lambda x: tuple(part.T for part in np.split(x, parts)),
        write=lambda *x: (np.concatenate([part.T for part in x]),),
    )


def split_columns(parts: int) -> Transform:
    """Arrays joined along the last axis: kernels [in, parts D] as ours lie, and their biases."""
    return Transform(read=lambda x: tuple(np.split(x, parts, axis=-1)), write=lambda *x: (np.concatenate(x, axis=-1),))


qkv, qkv_bias = split_linear(3), split(3)
gate_and_up, gate_and_up_bias = split_linear(2), split(2)  # the two halves of SwiGLU


def tied(count: int) -> Transform:
    """An array that a file may hold under several names, with the same numbers; written under all."""

    def read(first: np.ndarray, *others: np.ndarray) -> Arrays:
        if not all(np.array_equal(first, other) for other in others):
            raise TableError("two tensors that are one in the model differ in the file")
        return (first,)

    return Transform(read, write=lambda x: (x,) * count)


def unused(shape: tuple[int, ...]) -> Transform:
    """A tensor that we have no use for: read into nothing, written as zeros."""
    return Transform(read=lambda x: (), write=lambda: (np.zeros(shape, np.float32),))


def positions(grid: Pair, before: Sequence[str] = ()) -> Transform:
    """One table [1, R + N, D]; our [D] for each of the R tokens `before` the patches, and [h, w, D] for these."""
    (h, w), R = grid, len(before)

    def read(table: np.ndarray) -> Arrays:
        if table.shape[:2] != (1, R + h * w):
            tokens = "".join(f"a {name} token, " for name in before)
            raise TableError(f"positions of shape {table.shape} do not fit {tokens}a grid of {h}x{w}")
        return *table[0, :R], table[0, R:].reshape(h, w, -1)

    def write(*parts: np.ndarray) -> Arrays:
        *vectors, patches = parts
        patches = patches.reshape(h * w, -1)
        return (np.concatenate([np.reshape(vectors, (R, patches.shape[1])).astype(patches.dtype), patches])[None],)

    return Transform(read, write)


def position_embedding(grid: Pair, before: Sequence[str] = ()) -> Transform:
    """`positions` as the weight of an embedding: the same table without its first axis, [R + N, D]."""
    table = positions(grid, before)
    return Transform(read=lambda x: table.read(x[None]), write=lambda *parts: (table.write(*parts)[0][0],))


def fixed_positions(grid: Pair, width: int) -> Transform:
    """A table [1, 1 + N, D], checked to be zero for CLS and the sin-cos table; no parameter of ours."""

    def read(table: np.ndarray) -> Arrays:
        if not is_fixed_table(grid, width, table):
            raise TableError("the checkpoint's positions are not the fixed sin-cos table: read them as learned")
        return ()

    return Transform(read=read, write=lambda: (_fixed_table(grid, width),))


def is_fixed_table(grid: Pair, width: int, table: np.ndarray) -> bool:
    """Tells whether positions [1, 1 + N, D] are zero for CLS and else the sin-cos table, to half precision."""
    if table.shape != (1, 1 + grid[0] * grid[1], width):
        return False
    return bool(np.abs(table.astype(np.float32) - _fixed_table(grid, width)).max() <= 1e-3)


def _fixed_table(grid: Pair, width: int) -> np.ndarray:
    table = sincos_grid(grid, width).reshape(-1, width)
    return np.concatenate([np.zeros_like(table[:1]), table])[None]


def position_rows(
    theirs: str, kind: str, grid: Pair, width: int, before: Sequence[str] = ("cls",), ours: str = "positions"
) -> Iterator[Row]:
    """A table of positions of a model whose `positions` are of that kind: learned, or checked to be the fixed table."""
    if kind == "learned":
        yield row(theirs, tuple(f"{ours}/{name}" for name in (*before, "grid")), positions(grid, before))
    else:
        yield row(theirs, (), fixed_positions(grid, width))


def dense(theirs: str, ours: str, bias: bool = True) -> Iterator[Row]:
    """A linear layer."""
    yield row(f"{theirs}.weight", f"{ours}/kernel", linear)
    if bias:
        yield row(f"{theirs}.bias", f"{ours}/bias", same)


def layer_norm(theirs: str, ours: str) -> Iterator[Row]:
    yield row(f"{theirs}.weight", f"{ours}/scale", same)
    yield row(f"{theirs}.bias", f"{ours}/bias", same)


def batch_norm(theirs: str, ours: str) -> Iterator[Row]:
    """Scale and bias, and the running statistics, which are a collection of their own."""
    yield from layer_norm(theirs, ours)
    yield row(f"{theirs}.running_mean", f"{ours}/mean", same, "batch_stats")
    yield row(f"{theirs}.running_var", f"{ours}/var", same, "batch_stats")
    yield row(f"{theirs}.num_batches_tracked", (), batches_seen)


def conv_norm(theirs: str, their_norm: str, ours: str) -> Iterator[Row]:
    """A convolution without bias, and its batch norm: an `nn.convolutions.ConvNorm`."""
    yield row(f"{theirs}.weight", f"{ours}/conv/kernel", conv)
    yield from batch_norm(their_norm, f"{ours}/norm")

"""The ways in which others' tensors differ from our parameters, and the rows of the layers that all families have."""

from collections.abc import Iterator

import numpy as np

from vitvlm.nn.patches import Pair
from vitvlm.nn.positions import sincos_grid
from vitvlm.pretrained.tables import Arrays, Row, TableError, Transform, row

same = Transform(read=lambda x: (x,), write=lambda x: (x,))
linear = Transform(read=lambda x: (x.T,), write=lambda x: (x.T,))  # [out, in], [in, out]
token = Transform(read=lambda x: (x[0, 0],), write=lambda x: (x[None, None],))  # [1, 1, D], [D]
tokens = Transform(read=lambda x: (x[0],), write=lambda x: (x[None],))  # [1, R, D], [R, D]
conv = Transform(  # [out, in, h, w], [h, w, in, out]
    read=lambda x: (x.transpose(2, 3, 1, 0),), write=lambda x: (x.transpose(3, 2, 0, 1),)
)
qkv = Transform(  # [3D, D], query, key and value [D, D]
    read=lambda x: tuple(part.T for part in np.split(x, 3)), write=lambda *x: (np.concatenate([part.T for part in x]),)
)
qkv_bias = Transform(  # [3D], three times [D]
    read=lambda x: tuple(np.split(x, 3)), write=lambda *x: (np.concatenate(x),)
)

batches_seen = Transform(read=lambda x: (), write=lambda: (np.zeros((), np.int64),))  # PyTorch's counter: none of ours


def conv_to_patch(patch: Pair) -> Transform:
    """A convolution [D, C, p, q] whose stride is its size; our linear map [p q C, D]."""
    return Transform(
        read=lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
        write=lambda x: (x.reshape(*patch, -1, x.shape[1]).transpose(3, 2, 0, 1),),
    )


def cls_and_grid(grid: Pair) -> Transform:
    """One position table [1, 1 + N, D]; our [D] for CLS and [h, w, D] for the patches."""
    h, w = grid

    def read(table: np.ndarray) -> Arrays:
        if table.shape[:2] != (1, 1 + h * w):
            raise TableError(f"positions of shape {table.shape} do not fit a CLS token and a grid of {h}x{w}")
        return table[0, 0], table[0, 1:].reshape(h, w, -1)

    return Transform(
        read=read, write=lambda cls, table: (np.concatenate([cls[None], table.reshape(-1, cls.shape[0])])[None],)
    )


def grid_table(grid: Pair) -> Transform:
    """Positions [1, N, D] without one of a CLS token; our [h, w, D]."""
    return Transform(
        read=lambda x: (x[0].reshape(*grid, -1),), write=lambda table: (table.reshape(1, -1, table.shape[-1]),)
    )


def buffer(value: np.ndarray) -> Transform:
    """A tensor that follows from the config, checked to be `value`; no parameter of ours."""

    def read(tensor: np.ndarray) -> Arrays:
        if not np.array_equal(tensor, value):
            raise TableError("a buffer of the checkpoint has other values than its config says")
        return ()

    return Transform(read=read, write=lambda: (value,))


def fixed_positions(grid: Pair, width: int) -> Transform:
    """A table [1, 1 + N, D], checked to be zero for CLS and the sin-cos table; no parameter of ours."""

    def read(table: np.ndarray) -> Arrays:
        if not is_fixed_table(grid, width, table):
            raise TableError("the checkpoint's positions are not the fixed sin-cos table: read them as learned")
        return ()

    return Transform(read=read, write=lambda: (_fixed_table(grid, width),))


def is_fixed_table(grid: Pair, width: int, table: np.ndarray) -> bool:
    """Whether positions [1, 1 + N, D] are zero for CLS and the sin-cos table; half precision is near enough."""
    if table.shape != (1, 1 + grid[0] * grid[1], width):
        return False
    return bool(np.abs(table.astype(np.float32) - _fixed_table(grid, width)).max() <= 1e-3)


def _fixed_table(grid: Pair, width: int) -> np.ndarray:
    table = sincos_grid(grid, width).reshape(-1, width)
    return np.concatenate([np.zeros_like(table[:1]), table])[None]


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

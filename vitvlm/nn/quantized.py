"""Frozen matrices in 8 or 4 bits, made whole where a layer uses them: int8 and NF4, in blocks of one output's inputs.

A `Quantized` stands in a parameter tree in the place of an array. Flax hands it to a module's `self.param` as the float
matrix (`unbox`), so no module knows of it; and as its own arrays have the layers' axis in front, `nn.scan` makes one
layer whole at a time.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core.config import ConfigError
from vitvlm.nn.boxed import Boxed

BLOCK = 64  # numbers that share a scale, as in QLoRA
KINDS = ("int8", "nf4")
# Dettmers et al. 2023, appendix E: quantiles of a standard normal, with an exact 0, scaled to [-1, 1].
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class Quantized(Boxed):
    """A matrix W [..., in, out], in blocks of 64 inputs of each output; every block has its own scale.

    Attributes:
      values: of int8 [..., in, out], W / scale as whole numbers from -127 to 127; of NF4 uint8 [..., in / 2, out], the
        indices into `NF4` of W / scale, two in a byte, of the even input in the low bits.
      scales: float32 [..., ceil(in / 64), out]: the block's largest magnitude, of int8 by 127.
    """

    values: Any
    scales: Any

    @property
    def kind(self) -> str:
        return "nf4" if self.values.dtype == jnp.uint8 else "int8"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of W."""
        *lead, rows, outputs = self.values.shape
        return (*lead, rows * 2 if self.kind == "nf4" else rows, outputs)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of W made whole."""
        return jnp.dtype(jnp.float32)

    def whole(self, dtype: DTypeLike = jnp.float32) -> Float[Array, "... in out"]:
        """Returns W, computed in float32."""
        values = _decoded(self.values) if self.kind == "nf4" else self.values.astype(jnp.float32)
        scales = jnp.repeat(self.scales, BLOCK, axis=-2)[..., : self.shape[-2], :]
        return (values * scales).astype(dtype)

    def unbox(self) -> Float[Array, "... in out"]:
        return self.whole()

    def replace_boxed(self, val: Float[Array, "... in out"]) -> "Quantized":
        return quantize(val, self.kind)


def is_narrow(stored: Array | Quantized, dtype: DTypeLike) -> bool:
    """Tells whether a matrix is stored in fewer bits than `dtype` has."""
    return isinstance(stored, Quantized) or stored.dtype.itemsize < jnp.dtype(dtype).itemsize


def whole(stored: Array | Quantized, dtype: DTypeLike) -> Float[Array, "... in out"]:
    """Returns a matrix in `dtype`, however it is stored."""
    return stored.whole(dtype) if isinstance(stored, Quantized) else stored.astype(dtype)


def quantize(matrix: Float[Array, "... in out"], kind: str, where: str = "a matrix") -> Quantized:
    """Rounds a matrix to the nearest values of a kind, "int8" or "nf4".

    Raises ConfigError for an array without inputs and outputs, and for NF4 if the number of inputs is odd.
    """
    check(matrix.shape, kind, where)
    inputs, blocks = matrix.shape[-2], -(-matrix.shape[-2] // BLOCK)
    matrix = matrix.astype(jnp.float32)
    padded = jnp.pad(matrix, [(0, 0)] * (matrix.ndim - 2) + [(0, blocks * BLOCK - inputs), (0, 0)])
    in_blocks = padded.reshape(*matrix.shape[:-2], blocks, BLOCK, matrix.shape[-1])
    largest = jnp.abs(in_blocks).max(axis=-2)
    scales = largest / 127 if kind == "int8" else largest
    shares = matrix / jnp.repeat(jnp.where(scales > 0, scales, 1), BLOCK, axis=-2)[..., :inputs, :]
    if kind == "int8":
        return Quantized(jnp.clip(jnp.round(shares), -127, 127).astype(jnp.int8), scales)
    codes = sum((shares > (low + high) / 2).astype(jnp.uint8) for low, high in itertools.pairwise(NF4))
    return Quantized(codes[..., 0::2, :] | codes[..., 1::2, :] << 4, scales)


def check(shape: tuple[int, ...], kind: str, where: str) -> None:
    """Raises ConfigError for a shape that the kind does not take."""
    if kind not in KINDS:
        raise ConfigError(f"{where}: {kind!r} is neither {' nor '.join(KINDS)}")
    if len(shape) < 2:
        raise ConfigError(f"{where}: {kind} is for matrices [..., in, out], not for {list(shape)}; take bfloat16")
    if kind == "nf4" and shape[-2] % 2:
        raise ConfigError(f"{where}: nf4 keeps inputs in pairs, and {list(shape)} has {shape[-2]}; take int8")


def _decoded(packed: Array) -> Float[Array, "... in out"]:
    """The values of NF4 codes, two of which are in each byte."""
    codes = jnp.stack([packed & 15, packed >> 4], axis=-2)  # [..., in / 2, 2, out]
    codes = codes.reshape(*packed.shape[:-2], -1, packed.shape[-1])
    return jax.lax.platform_dependent(codes, cpu=_looked_up, default=_chosen)


def _looked_up(codes: Array) -> Array:
    return jnp.asarray(NF4, jnp.float32).at[codes].get(mode="promise_in_bounds")


def _chosen(codes: Array) -> Array:
    """A choice for each of the four bits, as look-ups are slow on a TPU; a CPU would hold the constants as arrays."""
    values = [jnp.float32(value) for value in NF4]
    for bit in range(4):
        up = (codes >> bit & 1).astype(bool)
        values = [jnp.where(up, high, low) for low, high in zip(values[::2], values[1::2])]
    return values[0]

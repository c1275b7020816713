"""Matrices stored output by output, as a CPU reads them fastest for the few tokens of a step of generation.

A `Rows` stands in a parameter tree in the place of a kernel [..., in, out]; Flax hands it to a module as that kernel
(`unbox`), and the compiler reads the rows as they are stored: it makes int8 and bfloat16 whole inside the product.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitvlm.core.config import ConfigError, suggest
from vitvlm.nn.boxed import Boxed

KINDS = ("float32", "bfloat16", "int8")
BLOCK = 64  # inputs that share a scale, or fewer, a divisor of them all
PART = 2**22  # values of a part at most


class Rows(Boxed):
    """A matrix W [..., in, out] as its transpose.

    Attributes:
      values [..., out, in]: float32; int16, the bits of bfloat16; or int8, W / scale from -127 to 127.
      scales [..., out, in / block]: of int8, the largest magnitude of each block of inputs by 127; else None.
    """

    values: Any
    scales: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of W."""
        *lead, outputs, inputs = self.values.shape
        return (*lead, inputs, outputs)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of W made whole."""
        return jnp.dtype(jnp.float32)

    def product(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """Returns x W in the dtype of x.

        Of one token the product with narrow values is computed in a loop over parts of the outputs: there a compiler
        for CPUs makes the values whole inside the product. Outside a loop it would compute x, with all that comes
        before it, once for each output, or write down the whole matrix.
        """
        flat = x.reshape(-1, x.shape[-1])
        outputs, inputs = self.values.shape
        if len(flat) == 1 and self.kind != "float32":
            count = next((n for n in range(2, outputs) if outputs % n == 0 and outputs * inputs <= n * PART), outputs)
            parts = jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), self)
            y = jax.lax.map(lambda part: flat @ part._whole().astype(x.dtype).T, parts).reshape(1, -1)
        else:  # the transposition is part of the product
            y = jax.lax.dot_general(flat, self._whole().astype(x.dtype), (((1,), (1,)), ((), ())))
        return y.reshape(*x.shape[:-1], -1)

    def unbox(self) -> Float[Array, "... in out"]:
        """Returns W, float32."""
        return self._whole().swapaxes(-1, -2)

    def _whole(self) -> Float[Array, "... out in"]:
        if self.values.dtype == jnp.int16:
            # A product of integers, as the compiler for CPUs takes bfloat16 one by one.
            rows = jax.lax.bitcast_convert_type(self.values.astype(jnp.int32) * 65536, jnp.float32)
        else:
            rows = self.values.astype(jnp.float32)
        if self.scales is not None:
            blocks = rows.reshape(*self.scales.shape, -1) * self.scales[..., None]
            rows = blocks.reshape(rows.shape)
        return rows

    def replace_boxed(self, val: Float[Array, "... in out"]) -> "Rows":
        return rows(val, self.kind)

    @property
    def kind(self) -> str:
        """The name in `KINDS` of how the values are stored."""
        return {"float32": "float32", "int16": "bfloat16", "int8": "int8"}[self.values.dtype.name]


def rows(matrix: Float[Array, "... in out"], kind: str) -> Rows:
    """Stores a matrix output by output, rounded to the nearest values of a kind of `KINDS`.

    Raises ConfigError for an unknown kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"weights: {kind!r}; {suggest(kind, KINDS)}")
    values = jnp.swapaxes(matrix, -1, -2).astype(jnp.float32)
    if kind == "float32":
        return Rows(values)
    if kind == "bfloat16":
        return Rows(jax.lax.bitcast_convert_type(values.astype(jnp.bfloat16), jnp.int16))
    inputs = values.shape[-1]
    blocks = values.reshape(*values.shape[:-1], -1, math.gcd(inputs, BLOCK))
    scales = jnp.abs(blocks).max(axis=-1) / 127
    shares = blocks / jnp.where(scales > 0, scales, 1)[..., None]
    return Rows(jnp.round(shares).astype(jnp.int8).reshape(values.shape), scales)

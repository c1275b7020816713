"""The one linear layer of all models: y = x W + b, on tokens flattened to two axes."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.nn.roles import LINEAR, Roles


class Dense(nn.Module):
    """Linear map of the last axis: y = x W + b.

    All leading axes are flattened to one before the product: a weight gradient that contracts over two axes
    is several times slower on CPU than one that contracts over their product.
    """

    roles: ClassVar[Roles] = LINEAR

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        x = x.astype(self.dtype)
        y = product(x.reshape(-1, x.shape[-1]), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            y = y + bias.astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


@jax.custom_vjp
def product(x: Float[Array, "T in"], kernel: Float[Array, "in out"]) -> Float[Array, "T out"]:
    """x W, with a gradient (reverse mode only) for which dy is computed once.

    Two products read dy. Left to itself the compiler may fuse the elementwise work before them into each.
    """
    return x @ kernel


def _product_backward(saved, d_y):
    x, kernel = saved
    d_y = jax.lax.optimization_barrier(d_y)
    return d_y @ kernel.T, x.T @ d_y


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)

"""The one linear layer of all models: y = x W + b."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from vitvlm.core.lowering import by_platform
from vitvlm.nn.lora import Adapted
from vitvlm.nn.quantized import Quantized, is_narrow, whole
from vitvlm.nn.roles import LINEAR, Roles
from vitvlm.nn.rows import Rows


class Dense(nn.Module):
    """Linear map of the last axis: y = x W + b."""

    roles: ClassVar[Roles] = LINEAR

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        x, stored = x.astype(self.dtype), self.get_variable("params", "kernel")
        if isinstance(stored, Adapted):
            y = product_of_adapted(x, stored, None if stored.dropout is None else self.make_rng("dropout"))
        else:
            kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
            y = product_of(x, kernel if stored is None else stored)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
            y = y + bias.astype(self.dtype)
        return y


def product_of(x: Float[Array, "... in"], stored: Array | Quantized | Rows) -> Float[Array, "... out"]:
    """Returns x W in the dtype of x, however the kernel is stored."""
    if isinstance(stored, Rows):
        return stored.product(x)
    return product_of_stored(x, stored) if is_narrow(stored, x.dtype) else product(x, stored.astype(x.dtype))


def product_of_adapted(
    x: Float[Array, "... in"], adapted: Adapted, rng: Key[Array, ""] | None
) -> Float[Array, "... out"]:
    """Returns x (W + s A B) without that sum, or of DoRA x (m / |W + s A B|) (W + s A B); see `nn.lora`.

    With a dropout of the adapter, whose key is `rng`, x W stays whole: dropped inputs are those of what is added to it.
    """
    y = whole = product_of(x, adapted.base)
    dropped = x
    if rng is not None:
        kept = jax.random.bernoulli(rng, 1 - adapted.dropout, x.shape)
        dropped = x * (kept / (1 - adapted.dropout)).astype(x.dtype)
    update = product(product(dropped, adapted.a.astype(x.dtype)), adapted.b.astype(x.dtype))
    update = update * adapted.scale.astype(x.dtype)
    if adapted.magnitude is None:
        return y + update
    share = (adapted.magnitude / adapted.norm()).astype(x.dtype)
    if rng is not None:
        whole = product_of(dropped, adapted.base)
    return y + (share - 1) * whole + share * update


@jax.custom_vjp
def product(x: Float[Array, "... in"], kernel: Float[Array, "in out"]) -> Float[Array, "... out"]:
    """Returns x W. Its gradient (reverse mode only) takes the form that is fast on the platform at hand.

    A CPU takes several times longer for a weight gradient that contracts over several axes than for one that contracts
    over their product, so there all but the last axis are flattened. Two products read dy, and the compiler may fuse
    the elementwise work before them into each: a barrier has it done once. A TPU tiles the last two axes, so that
    flattening moves the data, unless 8 divides the tokens; a GPU's compiler flattens for itself.
    """
    return x @ kernel


def _backward(saved, d_y):
    return by_platform(_gradients, *saved, d_y, cpu=_flat_gradients)


def _gradients(x, kernel, d_y):
    leading = tuple(range(x.ndim - 1))
    d_x = jax.lax.dot_general(d_y, kernel, (((d_y.ndim - 1,), (1,)), ((), ())))
    return d_x, jax.lax.dot_general(x, d_y, ((leading, leading), ((), ())))


def _flat_gradients(x, kernel, d_y):
    flat_x, flat_d_y = (array.reshape(-1, array.shape[-1]) for array in (x, d_y))
    flat_d_y = jax.lax.optimization_barrier(flat_d_y)
    return (flat_d_y @ kernel.T).reshape(x.shape), flat_x.T @ flat_d_y


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _backward)


@jax.custom_vjp
def product_of_stored(x: Float[Array, "... in"], stored: Array | Quantized) -> Float[Array, "... out"]:
    """Returns x W for a kernel that is stored in fewer bits than x.

    The gradient keeps the kernel as it is stored and makes it whole again: under `nn.scan` what is kept of all layers
    would otherwise be the whole model in x's dtype.
    """
    return product(x, whole(stored, x.dtype))


def _stored_backward(saved, d_y):
    x, stored = saved
    _, pull_back = jax.vjp(product, x, whole(stored, x.dtype))
    d_x, d_kernel = pull_back(d_y)
    return d_x, None if isinstance(stored, Quantized) else d_kernel.astype(stored.dtype)


product_of_stored.defvjp(lambda x, stored: (product_of_stored(x, stored), (x, stored)), _stored_backward)

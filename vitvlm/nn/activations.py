"""Activation functions by the names that configs and checkpoints use."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vitvlm.core import config

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), Phi being the normal distribution function (Hendrycks and Gimpel 2016, equation 1).

    In float32 inside, by erf: `jax.nn.gelu`'s erfc, exact in the far tail as well, is compiled for CPU as four passes.
    The gradient (reverse mode only) saves x alone and is one pass.
    """
    wide = x.astype(jnp.float32)
    return (wide * normal_cdf(wide)).astype(x.dtype)


def _gelu_backward(x: Float[Array, "..."], gradient: Float[Array, "..."]) -> tuple[Float[Array, "..."]]:
    # Without the barrier the compiler keeps erf(x) from the forward pass: more to write than to compute.
    wide = jax.lax.optimization_barrier(x).astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(wide)) * (2 * math.pi) ** -0.5
    return ((gradient * (normal_cdf(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def saves_input(function: Activation) -> Activation:
    """Returns the function with a gradient that computes what it needs from x again.

    Under `nn.scan` each intermediate result is kept for all layers otherwise: of a tanh GELU five of x's size.
    """
    return jax.checkpoint(function, prevent_cse=False)


def normal_cdf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """P(X <= x) for X ~ N(0, 1)."""
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x sigmoid(1.702 x): CLIP's approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_tanh": saves_input(functools.partial(jax.nn.gelu, approximate=True)),
    "quick_gelu": saves_input(quick_gelu),
    "relu": jax.nn.relu,
    "silu": saves_input(jax.nn.silu),
}


def activation(name: str) -> Activation:
    """The function of that name. Raises ConfigError that offers the nearest."""
    if name not in ACTIVATIONS:
        raise config.ConfigError(f"activation {name!r}: no such activation; {config.suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]

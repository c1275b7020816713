"""Activation functions by the names that configs and checkpoints use."""

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from vitvlm.core import config

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x sigmoid(1.702 x): CLIP's approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def activation(name: str) -> Activation:
    """The function of that name. Raises ConfigError that offers the nearest."""
    if name not in ACTIVATIONS:
        raise config.ConfigError(f"activation {name!r}: no such activation; {config.suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]

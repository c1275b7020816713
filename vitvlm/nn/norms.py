"""Norms by the names that configs use: LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019)."""

import functools
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitvlm.core import config
from vitvlm.nn.roles import NORM, Roles

MakeNorm = Callable[..., nn.Module]  # called with `name`


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon), times a learned scale per channel; computed in float32.

    Fields:
      zero_centred: whether the factor is 1 + scale, the scale being 0 at first, so that weight decay pulls the factor
        to 1 (Gemma); otherwise it is the scale, 1 at first.
    """

    roles: ClassVar[Roles] = NORM

    epsilon: float = 1e-6
    zero_centred: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        init = nn.initializers.zeros_init() if self.zero_centred else nn.initializers.ones_init()
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (normed * (1 + scale if self.zero_centred else scale)).astype(self.dtype)


NORMS: dict[str, MakeNorm] = {
    "layer": nn.LayerNorm,
    "layer_without_bias": functools.partial(nn.LayerNorm, use_bias=False),
    "rms": RMSNorm,
    "rms_zero_centred": functools.partial(RMSNorm, zero_centred=True),
}


def make_norm(kind: str, epsilon: float, **dtypes: DTypeLike) -> MakeNorm:
    """Returns what makes a norm from its `name`. Raises ConfigError for an unknown kind, and names the nearest."""
    if kind not in NORMS:
        raise config.ConfigError(f"model.norm: no norm {kind!r}; {config.suggest(kind, NORMS)}")
    return functools.partial(NORMS[kind], epsilon=epsilon, **dtypes)

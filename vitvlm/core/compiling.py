"""What is asked of the compiler beyond its defaults."""

import functools
import os
import platform
from collections.abc import Sequence

import jax

# Products alone: with their neighbours fused in, oneDNN's graphs may fail to compile, and that ends the process.
ONEDNN = {
    "xla_cpu_use_onednn": True,
    "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}


def compiler_options(devices: Sequence[jax.Device]) -> dict[str, bool | str]:
    """For `jax.jit`, of a program that runs on these devices.

    On one x86 CPU, float32 matrix products by oneDNN: in a ViT's step they and attention's take less time than by the
    library that the compiler takes by default. Empty for other devices, for a JAX whose compiler does not know the
    options, and where XLA_FLAGS name oneDNN: then the choice is the user's.
    """
    one_cpu = len(devices) == 1 and devices[0].platform == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if not one_cpu or "onednn" in os.environ.get("XLA_FLAGS", ""):
        return {}
    return dict(ONEDNN) if _known(tuple(ONEDNN.items())) else {}


@functools.cache
def _known(options: tuple[tuple[str, bool | str], ...]) -> bool:
    """Whether this compiler takes them: it refuses a name it does not know."""
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError:
        return False
    return True

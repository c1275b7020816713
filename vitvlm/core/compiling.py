"""Compiler options that differ from JAX's defaults."""

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
    """Returns the `compiler_options` of `jax.jit` for a program that runs on these devices.

    On a single x86 CPU, oneDNN computes float32 matrix products: in a ViT's step they and attention take less time than
    with the compiler's default library. The options are empty for other devices, for a JAX whose compiler does not know
    them, and where XLA_FLAGS name oneDNN: then the choice is the user's.
    """
    one_cpu = len(devices) == 1 and devices[0].platform == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if not one_cpu or "onednn" in os.environ.get("XLA_FLAGS", ""):
        return {}
    return dict(ONEDNN) if _known(tuple(ONEDNN.items())) else {}


@functools.cache
def _known(options: tuple[tuple[str, bool | str], ...]) -> bool:
    """Tells whether this compiler accepts the options: it refuses a name that it does not know."""
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError:
        return False
    return True

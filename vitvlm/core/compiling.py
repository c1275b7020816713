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
# A CPU slices no bfloat16, so that a loop over layers widens the stack that it takes one of, in each turn the same; the
# pass would do that once before the loop, and the widened stack would lie in memory throughout.
LOOPS = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def compiler_options(devices: Sequence[jax.Device]) -> dict[str, bool | str]:
    """Returns the `compiler_options` of `jax.jit` for a program that runs on these devices.

    On CPUs a loop over layers does not hold float32 copies of all layers' bfloat16 parameters. On a single x86 CPU,
    oneDNN computes float32 matrix products: in a ViT's step they and attention take less time than with the compiler's
    default library. The options are empty for other devices, and leave out what a JAX's compiler does not know and what
    XLA_FLAGS name, oneDNN or the passes that are disabled: then the choice is the user's.
    """
    if any(device.platform != "cpu" for device in devices):
        return {}
    flags, groups = os.environ.get("XLA_FLAGS", ""), []
    if "xla_disable_hlo_passes" not in flags:
        groups.append(LOOPS)
    if len(devices) == 1 and platform.machine() in ("x86_64", "AMD64") and "onednn" not in flags:
        groups.append(ONEDNN)
    return {name: value for group in groups if _known(tuple(group.items())) for name, value in group.items()}


@functools.cache
def _known(options: tuple[tuple[str, bool | str], ...]) -> bool:
    """Tells whether this compiler accepts the options: it refuses a name that it does not know."""
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError:
        return False
    return True

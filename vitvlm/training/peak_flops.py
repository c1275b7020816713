"""Peak floating-point operations per second of the devices: the 100 % of MFU (model FLOPs utilisation)."""

import time

import jax
import jax.numpy as jnp

from vitvlm.core import compiling

# Dense bfloat16 products per second and device, from the makers' data sheets. The longest name that `device_kind`
# begins with counts: "TPU v5 lite" before "TPU v5". A TPU v2 or v3 device is one of a chip's two cores.
PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA V100": 125e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
    "NVIDIA A100": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak(devices: list[jax.Device] | None = None) -> float | None:
    """FLOP/s of all these devices together (all of all processes by default); None for an unknown kind.

    Simulated CPU devices share one processor, so theirs is measured once: the best of a few float32 products.
    """
    devices = jax.devices() if devices is None else devices
    if devices[0].platform == "cpu":
        return _measured(devices) * len({device.process_index for device in devices})
    known = [name for name in PEAKS if devices[0].device_kind.startswith(name)]
    return PEAKS[max(known, key=len)] * len(devices) if known else None


def _measured(devices: list[jax.Device], size: int = 1024, repeats: int = 5) -> float:
    """FLOP/s of this process's CPU: the best of a few products of two [size, size] matrices, compiled as a step is."""
    product = jax.jit(jnp.matmul, compiler_options=compiling.compiler_options(devices))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        matrix = jnp.ones((size, size), jnp.float32)
        product(matrix, matrix).block_until_ready()
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            product(matrix, matrix).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best

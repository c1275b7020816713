"""Threads for simulated devices: several on one CPU, as `JAX_NUM_CPU_DEVICES=8` gives them."""

import os

THREADS_PER_DEVICE = 8


def give_threads() -> None:
    """Gives the CPU's simulated devices more threads, unless NPROC or PJRT_NPROC says how many there are.

    XLA makes one thread per device. A program that gathers two arrays at once takes two threads of a device, each of
    which waits until all devices take part; then the last device finds no thread, and after 40 seconds XLA aborts the
    process. Call it before JAX makes its devices.
    """
    devices = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if devices.isdecimal() and int(devices) > 1 and "NPROC" not in os.environ:
        os.environ.setdefault("PJRT_NPROC", str(int(devices) * THREADS_PER_DEVICE))

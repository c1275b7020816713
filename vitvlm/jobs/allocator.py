"""Settings of the C library's allocator for the large buffers that JAX computes in on CPU."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_large_buffers() -> bool:
    """Lets the process keep freed memory for its next step; returns whether the C library (glibc) can.

    A compiled step asks for all its temporary memory at once. glibc maps so large a buffer afresh each time and unmaps
    it after the step, and the kernel zeroes every page again at its first use: 10 to 20 % of a step of ViT-S/16 on
    CPU. Kept, it costs that memory between steps: once, or a few times over (ten at the most we have seen), because
    glibc's aligned allocation does not reuse a freed buffer whose neighbour a small one has taken, and maps another.
    Works only before threads have made heaps of their own, so call it before JAX runs anything.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1)])

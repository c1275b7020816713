"""Keeps the cores awake while something is timed."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from vitvlm.core.config import ConfigError


@contextlib.contextmanager
def cores_awake(cores: int) -> Iterator[list[subprocess.Popen]]:
    """Runs an endless loop per core, of the priority that gives way to everything else (SCHED_IDLE), inside the block.

    A core that waits goes to sleep, and a virtual one is lent to others: what wakes its threads more often then looks
    slower than what spins. Such a loop takes no time from either. Yields the processes, which end with the block.

    Raises ConfigError where the system has no such priority (it is Linux's).
    """
    if not hasattr(os, "SCHED_IDLE"):
        raise ConfigError("--keep_awake needs Linux's idle priority: leave it out here")
    loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(cores)]
    try:
        for loop in loops:
            os.sched_setscheduler(loop.pid, os.SCHED_IDLE, os.sched_param(0))
        yield loops
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()

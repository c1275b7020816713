"""Limits of time and memory for what a test runs, so that a fault fails the test instead of stopping all of them."""

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def bounded(seconds: float = 5, mib: int = 700) -> Iterator[None]:
    """Raises TooLong after the seconds, and MemoryError beyond so much memory more than the process has now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (held + mib * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


class TooLong(BaseException):
    """Raised in what runs longer than it may; no handler of errors catches it."""


def _stop(*_) -> None:
    raise TooLong

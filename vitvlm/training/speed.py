"""How fast training goes: images/s, the share of the peak FLOP/s, and the share of time spent waiting for data."""

import contextlib
import time
from collections.abc import Iterator


class Speed:
    """Measures between calls of `lap`; evaluations and saves run under `paused` and do not count."""

    def __init__(self, batch_size: int, flops_per_step: float | None = None, peak_flops: float | None = None):
        """`batch_size` counts the examples of all processes; the FLOP figures those of all devices together."""
        self._batch_size = batch_size
        self._flops_per_step = flops_per_step
        self._peak_flops = peak_flops
        self._start: tuple[int, float] | None = None
        self._waited = self._rested = 0.0
        self._seconds_per_step: float | None = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around taking a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not training."""
        start = time.perf_counter()
        yield
        self._rested += time.perf_counter() - start

    def lap(self, step: int) -> dict[str, float]:
        """The rates since the last lap as metrics; none at the first, whose step was compiled."""
        now = time.perf_counter()
        rates: dict[str, float] = {}
        if self._start is not None and step > self._start[0]:
            elapsed = max(now - self._start[1] - self._rested, 1e-9)
            seconds = elapsed / (step - self._start[0])
            self._seconds_per_step = seconds
            rates = {
                "time/images_per_second": self._batch_size / seconds,
                "time/step_seconds": seconds,
                "time/input_share": min(self._waited / elapsed, 1.0),
            }
            if self._flops_per_step is not None and self._peak_flops is not None:
                rates["time/mfu"] = self._flops_per_step / seconds / self._peak_flops
        self._start = (step, now)
        self._waited = self._rested = 0.0
        return rates

    def remaining(self, steps: int) -> float | None:
        """Seconds that so many steps take at the last lap's rate; None before there is one."""
        return None if self._seconds_per_step is None else steps * self._seconds_per_step

"""Speed of training: images/s, the share of the peak FLOP/s, and the share of time spent waiting for data."""

import contextlib
import time
from collections.abc import Iterator


class Speed:
    """Measures from `start`, then between calls of `lap`; evaluations and saves run under `paused` and do not count."""

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
        """Context that counts its time as waiting for a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose time does not count as training, for evaluations and saves."""
        start = time.perf_counter()
        yield
        self._rested += time.perf_counter() - start

    def start(self, step: int) -> None:
        """Starts the clock when the first step, which includes compiling, is done; later calls do nothing."""
        if self._start is None:
            self._restart(step)

    def lap(self, step: int) -> dict[str, float]:
        """The rates since the last lap as metrics; none where no step was done since."""
        if self._start is None or step <= self._start[0]:
            return {}
        first_step, started = self._start
        elapsed = max(time.perf_counter() - started - self._rested, 1e-9)
        self._seconds_per_step = elapsed / (step - first_step)
        rates = {
            "time/images_per_second": self._batch_size / self._seconds_per_step,
            "time/step_seconds": self._seconds_per_step,
            "time/input_share": min(self._waited / elapsed, 1.0),
        }
        if self._flops_per_step is not None and self._peak_flops is not None:
            rates["time/mfu"] = self._flops_per_step / self._seconds_per_step / self._peak_flops
        self._restart(step)
        return rates

    def remaining(self, steps: int) -> float | None:
        """Returns the seconds that a number of steps takes at the last lap's rate; None before the first lap."""
        return None if self._seconds_per_step is None else steps * self._seconds_per_step

    def _restart(self, step: int) -> None:
        self._start = (step, time.perf_counter())
        self._waited = self._rested = 0.0

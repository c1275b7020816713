"""SIGTERM and SIGINT as a request to save and stop after the running step."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: "try again", here: run the same command and it goes on


class Interrupted(SystemExit):
    """Ends the program with EXIT_STATUS after the state was saved; `message` says what to do."""

    def __init__(self, message: str):
        super().__init__(EXIT_STATUS)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupts:
    """Context in which a first SIGTERM or SIGINT is only noted; a second one ends the program as usual.

    With several processes, JAX's own preemption service watches SIGTERM and agrees on one step for all of them.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        if jax.process_count() == 1:
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def requested(self, step: int) -> str | None:
        """The signal's name once training shall stop before doing another step; the same step on every process."""
        if jax.process_count() > 1:
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None
        return self.received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.__exit__()
            signal.raise_signal(number)
        self.received = signal.Signals(number).name

"""The one train loop: for each step, save if due, evaluate if due, take the next batch, step, report the step before.

It knows no task, model or data set. Step n means: n updates are done. So evaluation and checkpoint n belong to
the parameters after n updates, and the iterator in checkpoint n gives the batch of update n + 1.

A state is on disk before it is evaluated, and each evaluation's metrics are put beside it as they come: whatever an
evaluation does, the same command goes on from that very step, and repeats only the evaluations that are missing.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array

from vitvlm.training import resume
from vitvlm.training.checkpoints import CheckpointError, Checkpoints
from vitvlm.training.interrupts import Interrupted, Interrupts
from vitvlm.training.progress import Progress
from vitvlm.training.speed import Speed
from vitvlm.training.state import TrainState
from vitvlm.training.step import TrainStep
from vitvlm.training.writers import Value, Writer


class NotFiniteError(RuntimeError):
    """A metric of a step is NaN or Inf; the message names the step, the metric and the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """An evaluation and the steps at which it runs.

    Attributes:
      name: prefix of its metrics: "val" gives "val/accuracy".
      run: `(state, step) -> metrics`.
      every: steps between evaluations; 0 for none in between.
      at_start: also before the first step.
      at_end: also after the last step.
    """

    name: str
    run: Callable[[TrainState, int], Mapping[str, Value]]
    every: int = 0
    at_start: bool = False
    at_end: bool = True

    def due(self, step: int, total_steps: int) -> bool:
        if step == total_steps:
            return self.at_end
        if step == 0:
            return self.at_start
        return self.every > 0 and step % self.every == 0


def fit(
    train_step: TrainStep,
    start: resume.Start,
    batches: resume.Batches,
    *,
    total_steps: int,
    place: Callable[[Mapping[str, np.ndarray]], Mapping[str, Array]],
    writer: Writer,
    progress: Progress,
    speed: Speed,
    interrupts: Interrupts,
    evaluations: Sequence[Scheduled] = (),
    checkpoints: Checkpoints | None = None,
    save_every: int = 0,
    log_every: int = 1,
    begun: Callable[[], None] = lambda: None,
) -> TrainState:
    """Trains from where `start` is to `total_steps`, and returns the last state.

    Args:
      train_step: compiled `(state, batch) -> (state, metrics)`; it may donate its state.
      start: from `resume.restore_or_init`; its state is used up.
      batches: the training batches, at the same place.
      place: puts a host batch on the devices.
      writer, progress, speed: where metrics and rates go.
      interrupts: asked before each step whether to stop.
      evaluations: run when due, each after the state is on disk; the checkpoint holds their metrics.
      checkpoints: where the state goes every `save_every` steps (0: not in between), after the last step, before an
        evaluation, and when interrupted. None saves nothing.
      log_every: steps between rows of training metrics; every step is checked for NaN and Inf.
      begun: called once, when the first step has been made.

    Raises NotFiniteError when a metric is NaN or Inf (such a state is never saved), Interrupted after SIGTERM or
    SIGINT with the state saved, and CheckpointError when a save failed.
    """
    state, first_step = start.state, int(start.state.step)
    report = _Report(writer, progress, speed, total_steps, log_every, checkpoints)

    def save(step: int, state: TrainState) -> None:
        report.flush()
        with speed.paused():
            checkpoints.save(step, state, resume=resume.here(batches, writer, ()))

    for step in range(first_step, total_steps + 1):
        on_disk = step == start.restored
        evaluated = list(start.evaluated) if step == first_step else []

        if step < total_steps and (signal := interrupts.requested(step)):
            if checkpoints is not None and step > first_step:
                save(step, state)
            raise Interrupted(_farewell(signal, step, checkpoints))

        due = [each for each in evaluations if each.due(step, total_steps) and each.name not in evaluated]
        if checkpoints is not None and step > first_step:
            checkpoints.check()
            if due or step == total_steps or (save_every > 0 and step % save_every == 0):
                save(step, state)
                on_disk = True

        for evaluation in due:
            if on_disk:
                with speed.paused():
                    checkpoints.wait()
            metrics = report.evaluation(step, evaluation, state)
            evaluated.append(evaluation.name)
            if on_disk:
                checkpoints.add_metrics(step, metrics, resume=resume.here(batches, writer, evaluated))

        if step < total_steps:
            with speed.waiting():
                batch = place(next(batches))
            state, metrics = train_step(state, batch)
            if step == first_step:
                begun()
            report.later(step + 1, metrics)

    report.flush()
    if checkpoints is not None:
        checkpoints.wait()
    return state


def _farewell(signal: str, step: int, checkpoints: Checkpoints | None) -> str:
    if checkpoints is None:
        return f"{signal}: stopped after step {step}; nothing is saved, as no checkpoints are asked for"
    checkpoints.wait()
    saved = checkpoints.latest_step()
    where = "nothing was done yet" if saved is None else f"checkpoint {saved} is saved"
    return f"{signal}: stopped after step {step}; {where}: run the same command again to go on"


class _Report:
    """Holds a step's metrics until the next step is on its way, so that the device never waits for the host."""

    def __init__(
        self,
        writer: Writer,
        progress: Progress,
        speed: Speed,
        total_steps: int,
        log_every: int,
        checkpoints: Checkpoints | None,
    ):
        self._writer, self._progress, self._speed = writer, progress, speed
        self._total_steps, self._log_every = total_steps, log_every
        self._checkpoints = checkpoints
        self._held: tuple[int, Mapping[str, Array]] | None = None

    def later(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Publishes the metrics of the step before, and holds these."""
        self.flush()
        self._held = (step, metrics)

    def flush(self) -> None:
        """Publishes what is held. Raises NotFiniteError."""
        if self._held is None:
            return
        (step, metrics), self._held = self._held, None
        row: dict[str, Value] = {f"train/{name}": float(value) for name, value in jax.device_get(metrics).items()}
        if row.get("train/examples") == 0:
            self._progress.note(f"step {step}: none of the batch's images can be read, so nothing is learned from it")
            return
        for name, value in row.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"step {step}: {name} is {value}; {self._last_good()}")
        self._speed.start(step)
        if step % self._log_every == 0 or step == self._total_steps:
            row |= self._speed.lap(step)
            self._writer.write(step, row)
        self._progress.step(step, row, self._speed.remaining(self._total_steps - step))

    def evaluation(self, step: int, evaluation: Scheduled, state: TrainState) -> dict[str, Value]:
        self.flush()
        start = time.perf_counter()
        with self._speed.paused():
            metrics = {f"{evaluation.name}/{name}": value for name, value in evaluation.run(state, step).items()}
        row = {**metrics, f"time/{evaluation.name}_seconds": time.perf_counter() - start}
        self._writer.write(step, row)
        self._progress.evaluation(step, row)
        return metrics

    def _last_good(self) -> str:
        if self._checkpoints is None:
            return "nothing is saved, as no checkpoints are asked for"
        try:
            self._checkpoints.wait()
        except CheckpointError as error:
            return str(error)
        step = self._checkpoints.latest_step()
        return "there is no checkpoint yet" if step is None else f"the last good checkpoint is {step}"

"""The one train loop: for each step, evaluate if due, save if due, take the next batch, step, report the step before.

It knows no task, model or data set. Step n means: n updates are done. So evaluation and checkpoint n belong to
the parameters after n updates, and a checkpoint's iterator gives batch n+1 next.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array

from vitvlm.training.interrupts import Interrupted, Interrupts
from vitvlm.training.progress import Progress
from vitvlm.training.speed import Speed
from vitvlm.training.state import TrainState
from vitvlm.training.step import TrainStep
from vitvlm.training.writers import Value, Writer


class NotFiniteError(RuntimeError):
    """A metric of a step is NaN or Inf; the message names the step, the metric and the last good checkpoint."""


class Batches(Iterator[Mapping[str, np.ndarray]], Protocol):
    """An endless iterator of batches whose place can be saved."""

    def get_state(self) -> Any: ...


class Saver(Protocol):
    """What the loop needs of `checkpoints.Checkpoints`."""

    def save(
        self, step: int, state: TrainState, *, iterator: Any, metrics: Mapping[str, Value], evaluated: list[str]
    ) -> None: ...

    def improves(self, metrics: Mapping[str, Value]) -> bool: ...

    def latest_step(self) -> int | None: ...

    def wait(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What to evaluate, and when.

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
    state: TrainState,
    batches: Batches,
    *,
    total_steps: int,
    place: Callable[[Mapping[str, np.ndarray]], Mapping[str, Array]],
    writer: Writer,
    progress: Progress,
    speed: Speed,
    interrupts: Interrupts,
    evaluations: tuple[Evaluation, ...] = (),
    checkpoints: Saver | None = None,
    save_every: int = 0,
    log_every: int = 1,
    evaluated: tuple[str, ...] = (),
) -> TrainState:
    """Trains from `state.step` to `total_steps` and returns the last state.

    Args:
      train_step: compiled `(state, batch) -> (state, metrics)`; it may donate its state.
      state: where to start; step 0 or a restored one.
      batches: the training batches, at the state's place.
      place: puts a host batch on the devices.
      writer, progress, speed: where metrics and rates go.
      interrupts: asked before each step whether to stop.
      evaluations: run when due, before saving, so that a checkpoint holds its metrics.
      checkpoints: where the state goes every `save_every` steps (0: not in between), after the last step, when
        an evaluation gives a new best, and when interrupted. None saves nothing.
      log_every: steps between rows of training metrics; every step is checked for NaN and Inf.
      evaluated: names of the evaluations that the restored checkpoint holds; they are not run again at its step.

    Raises NotFiniteError when a metric is NaN or Inf (such a state is never saved), Interrupted after SIGTERM or
    SIGINT with the state saved, and CheckpointError when a save failed.
    """
    report = _Report(writer, progress, speed, total_steps, log_every, checkpoints)
    first_step = int(state.step)

    for step in range(first_step, total_steps + 1):
        done = list(evaluated) if step == first_step else []
        results: dict[str, Value] = {}

        if (signal := interrupts.requested(step)) and step < total_steps:
            report.flush()
            _stop(signal, step, state, batches, checkpoints, done, fresh=step > first_step)

        due = [each for each in evaluations if each.due(step, total_steps) and each.name not in done]
        if due:
            report.flush()
            with speed.paused():
                for evaluation in due:
                    results |= report.evaluation(step, evaluation, state)
                    done.append(evaluation.name)

        if checkpoints is not None and (step > first_step or due):
            scheduled = step == total_steps or (save_every > 0 and step % save_every == 0)
            if scheduled or checkpoints.improves(results):
                report.flush()
                with speed.paused():
                    checkpoints.save(step, state, iterator=batches.get_state(), metrics=results, evaluated=done)

        if step == total_steps:
            break

        with speed.waiting():
            batch = place(next(batches))
        state, metrics = train_step(state, batch)
        report.later(step + 1, metrics)

    report.flush()
    if checkpoints is not None:
        checkpoints.wait()
    return state


def _stop(signal, step, state, batches, checkpoints, evaluated, fresh) -> None:
    """Saves what an interrupted training did, and ends the program."""
    if checkpoints is None:
        raise Interrupted(f"{signal}: stopped after step {step}; nothing was saved, as no checkpoints were asked for")
    if fresh and checkpoints.latest_step() != step:
        checkpoints.save(step, state, iterator=batches.get_state(), metrics={}, evaluated=evaluated)
    checkpoints.wait()
    raise Interrupted(f"{signal}: stopped after step {step} and saved it; run the same command again to go on")


class _Report:
    """Holds a step's metrics until the next step is on its way, so that the device never waits for the host."""

    def __init__(self, writer, progress, speed, total_steps, log_every, checkpoints):
        self._writer: Writer = writer
        self._progress: Progress = progress
        self._speed: Speed = speed
        self._total_steps: int = total_steps
        self._log_every: int = log_every
        self._checkpoints: Saver | None = checkpoints
        self._held: tuple[int, Mapping[str, Array]] | None = None

    def later(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Publishes the metrics of the step before, and holds these."""
        self.flush()
        self._held = (step, metrics)

    def flush(self) -> None:
        if self._held is None:
            return
        step, metrics = self._held
        self._held = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"step {step}: {name} is {value}; {self._last_good()}")
        row: dict[str, Value] = {f"train/{name}": value for name, value in values.items()}
        if step % self._log_every == 0 or step == self._total_steps:
            row |= self._speed.lap(step)
            self._writer.write(step, row)
            self._progress.report(step, row, self._speed.remaining(self._total_steps - step))

    def evaluation(self, step: int, evaluation: Evaluation, state: TrainState) -> dict[str, Value]:
        start = time.perf_counter()
        metrics = {f"{evaluation.name}/{name}": value for name, value in evaluation.run(state, step).items()}
        row = {**metrics, f"time/{evaluation.name}_seconds": time.perf_counter() - start}
        self._writer.write(step, row)
        self._progress.report(step, row, None)
        return metrics

    def _last_good(self) -> str:
        if self._checkpoints is None:
            return "nothing was saved, as no checkpoints were asked for"
        self._checkpoints.wait()
        step = self._checkpoints.latest_step()
        return "there is no checkpoint yet" if step is None else f"the last good checkpoint is step {step}"

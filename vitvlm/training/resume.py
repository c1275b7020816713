"""Resuming: the place of a training that a checkpoint holds besides the state, so that it continues bit by bit."""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils

from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.state import TrainState
from vitvlm.training.writers import Writer

Json = Any


@runtime_checkable
class Batches(Iterator[Mapping[str, np.ndarray]], Protocol):
    """An endless iterator of host batches; `set_state(get_state())` makes it give the same batches again.

    Its state is JSON, or bytes. A state of the first process must do for any, since a training may go on with
    another number of processes.
    """

    def get_state(self) -> Json | bytes: ...

    def set_state(self, state: Json | bytes) -> None: ...


@dataclasses.dataclass(frozen=True)
class Start:
    """State and place from which a training begins or resumes.

    Attributes:
      state: fresh, or restored.
      restored: the step of the checkpoint that it comes from; None when fresh.
      evaluated: names of the evaluations whose results that checkpoint holds.
    """

    state: TrainState
    restored: int | None = None
    evaluated: tuple[str, ...] = ()


def restore_or_init(
    checkpoints: Checkpoints | None,
    target: TrainState,
    init: Callable[[], TrainState],
    batches: Batches,
    writer: Writer,
) -> Start:
    """Resumes from the newest whole checkpoint; starts afresh without one.

    Batches and metrics are put back to the same point: what was written after the checkpoint is forgotten, as those
    steps are done again.

    Args:
      checkpoints: None starts afresh.
      target: the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct`).
      init: makes the fresh state.
      batches: put to the checkpoint's place.
      writer: rewound to the checkpoint's place.

    Raises CheckpointError if there are checkpoints but none is whole, or it does not fit the target.
    """
    if checkpoints is None or checkpoints.latest_step() is None:
        writer.rewind(0, 0)
        return Start(init())
    restored = checkpoints.restore(target)
    place = restored.resume
    states = place["iterators"]
    batches.set_state(_decode(states[jax.process_index() if len(states) == jax.process_count() else 0]))
    writer.rewind(restored.step, place["written"])
    return Start(restored.state, restored.step, tuple(place["evaluated"]))


def here(batches: Batches, writer: Writer, evaluated: list[str]) -> Json:
    """The place to save: every process's iterator, the length of the metrics, and what is evaluated at this step."""
    own = _encode(batches.get_state())
    return {"iterators": _of_all_processes(own), "written": writer.mark(), "evaluated": list(evaluated)}


def _encode(state: Json | bytes) -> Json:
    return {"base64": base64.b64encode(state).decode()} if isinstance(state, bytes) else {"json": state}


def _decode(state: Json) -> Json | bytes:
    return base64.b64decode(state["base64"]) if "base64" in state else state["json"]


def _of_all_processes(own: Json) -> list[Json]:
    if jax.process_count() == 1:
        return [own]
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.int32(len(text))).max())
    texts = multihost_utils.process_allgather(np.pad(text, (0, longest - len(text)), constant_values=ord(" ")))
    return [json.loads(bytes(row)) for row in texts]

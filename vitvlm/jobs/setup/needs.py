"""Makes what tasks need of a job: each field that a task declares in `needs`, by the one function of its name."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vitvlm.core.durations import Clock
from vitvlm.jobs.setup import class_weights, teachers
from vitvlm.jobs.setup.data import DataSetup
from vitvlm.training import sharding


@dataclasses.dataclass(frozen=True)
class Known:
    """Facts of a job at the time when its task is built.

    Attributes:
      mesh: the devices.
      names: the classes of the job, in order; empty where they have no names.
      data: its source is opened if the task is to be trained.
    """

    mesh: sharding.AnyMesh
    names: Sequence[str]
    data: DataSetup


def _axes(known: Known) -> tuple[str, ...]:
    return tuple(axis for axis in sharding.BATCH_AXES if axis in known.mesh.shape)


def _distillation(section: Any, known: Known) -> Any:
    return teachers.build(section, known.data.train.ops, known.names, known.mesh)


def _class_weights(given: Any, known: Known) -> tuple[float, ...]:
    return class_weights.resolve(given, known.names, known.data.source)


def _alpha_ramp(given: Any, known: Known) -> int:
    return Clock(known.data.batch_size, known.data.source).steps(given, "config.task.alpha_ramp")


OF_JOB: dict[str, Callable[[Known], Any]] = {"mesh": lambda known: known.mesh, "axes": _axes}
"""Needs that follow from the job alone; a config does not set them."""
OF_LOSS: dict[str, Callable[[Any, Known], Any]] = {
    "distillation": _distillation,
    "class_weights": _class_weights,
    "alpha_ramp": _alpha_ramp,
}
"""Needs of the loss alone: a config describes them in the task's field of that name; left out where nothing trains."""


def resolve(needs: Iterable[str], section: Mapping[str, Any], known: Known) -> tuple[dict[str, Any], dict[str, Any]]:
    """Makes what a task needs.

    Args:
      needs: of the task's class.
      section: the config's fields of the task.

    Returns the fields that the config sets itself, and those that were made.
    """
    own, made = dict(section), {}
    for name in needs:
        if name in OF_JOB:
            made[name] = OF_JOB[name](known)
        elif (described := own.pop(name, None)) is not None and known.data.source is not None:
            made[name] = OF_LOSS[name](described, known)
    return own, made

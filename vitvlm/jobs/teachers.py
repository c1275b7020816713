"""The teacher of a classifier, from the config's `task.distillation`."""

from typing import Any

import numpy as np

from vitvlm import pretrained
from vitvlm.core import config as config_lib
from vitvlm.data.operations import colour, parse
from vitvlm.jobs import fields
from vitvlm.tasks.distillation import Distillation, Teacher

WHERE = "config.task.distillation"


def build(section: fields.Section, data: fields.Section) -> Distillation:
    """The teacher that `section["teacher"]`, a folder of weights, holds, and how much it counts.

    It is given the student's pixels: augmented, mixed and at the student's resolution. Where both say how images are
    normalised, they are normalised anew for it.

    Args:
      section: `teacher`, and fields of `tasks.distillation.Distillation`.
      data: the job's data section, whose training operations make the student's pixels.

    Raises ConfigError if the weights cannot be used, or for a field that does not exist.
    """
    if "teacher" not in section:
        raise config_lib.ConfigError(f"{WHERE}: missing field teacher: a folder of weights")
    try:
        loaded = pretrained.load(section["teacher"])
    except pretrained.WeightsError as error:
        raise config_lib.ConfigError(f"{WHERE}.teacher: {error}") from error
    scale, shift = _between(data["train"]["ops"], loaded.preprocessing)
    teacher = Teacher(loaded.model, loaded.variables, scale, shift)
    own = {name: value for name, value in section.items() if name != "teacher"}
    return config_lib.call(Distillation, own, WHERE, teacher=teacher)


def _between(ours: str, theirs: str | None) -> tuple[Any, Any]:
    """(scale, shift), float32, that take pixels normalised by one string of operations to those of the other."""
    student = colour.normalization(parse(ours))
    teacher = colour.normalization(parse(theirs)) if theirs else None
    if student is None or teacher is None:
        return 1.0, 0.0
    (mean, std), (their_mean, their_std) = student, teacher
    return (std / their_std).astype(np.float32), ((mean - their_mean) / their_std).astype(np.float32)

"""The teacher of a classifier, from the config's `task.distillation`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from vitvlm import pretrained
from vitvlm.core import config as config_lib
from vitvlm.data.operations import colour, parse
from vitvlm.jobs import fields
from vitvlm.jobs.setup import classes
from vitvlm.tasks.distillation import Distillation, Teacher
from vitvlm.training import sharding

WHERE = "config.task.distillation"


def build(section: fields.Section, ops: str, names: Sequence[str], mesh: Mesh | None = None) -> Distillation:
    """The teacher that `section["teacher"]`, a folder of weights, holds, and how much it counts.

    Its classes are found by name, and may be more than the student's; the log says what is not plain in that. It is
    given the student's pixels: augmented, mixed and at the student's resolution. Where both say how images are
    normalised, they are normalised anew for it.

    Args:
      section: `teacher`; `teacher_fields`, what its files do not say, such as heads; `class_names`, {class of the
        student: class of the teacher} where they differ, or a JSON file of that; and fields of
        `tasks.distillation.Distillation`.
      ops: the training operations, which make the student's pixels.
      names: the student's classes.
      mesh: the job's devices: the teacher is split over their "fsdp" axis, if they have one; one device without.

    Raises ConfigError if the weights cannot be used, or for a field that does not exist, and DataError for classes that
    the teacher does not know.
    """
    if "teacher" not in section:
        raise config_lib.ConfigError(f"{WHERE}: missing field teacher: a folder of weights")
    try:
        place = mesh and sharding.variables_by("fsdp" if "fsdp" in mesh.shape else "replicated", mesh)
        loaded = pretrained.load(section["teacher"], place, **config_lib.plain(section.get("teacher_fields", {})))
    except pretrained.WeightsError as error:
        raise config_lib.ConfigError(f"{WHERE}.teacher: {error}") from error
    scale, shift = _between(ops, loaded.preprocessing)
    teacher = Teacher(loaded.model, loaded.variables, scale, shift, _classes(section, loaded, names))
    own = {name: value for name, value in section.items() if name not in ("teacher", "teacher_fields", "class_names")}
    return config_lib.call(Distillation, own, WHERE, teacher=teacher)


def _classes(section: fields.Section, loaded: pretrained.Pretrained, names: Sequence[str]) -> tuple[int, ...] | None:
    """Finds the student's classes among the teacher's; None if they are the same in the same order."""
    if not (count := loaded.model.num_classes):
        return None  # the task says that it needs a classifier
    renames = classes.renames(section.get("class_names"), names, f"{WHERE}.class_names")
    remedy = f"say which is which by {WHERE}.class_names={{class: class of the teacher}} (or a JSON file of that)"
    wanted = [renames.get(name, name) for name in names]
    places, note = classes.find(wanted, loaded.class_names, count, WHERE, "the teacher's classes", remedy)
    if note:
        logging.warning("%s: %s", WHERE, note)
    return None if places == list(range(count)) else tuple(places)


def _between(ours: str, theirs: str | None) -> tuple[Any, Any]:
    """Returns (scale, shift), float32, from pixels normalised by one string of operations to those of the other."""
    student = colour.normalization(parse(ours))
    teacher = colour.normalization(parse(theirs)) if theirs else None
    if student is None or teacher is None:
        return 1.0, 0.0
    (mean, std), (their_mean, their_std) = student, teacher
    return (std / their_std).astype(np.float32), ((mean - their_mean) / their_std).astype(np.float32)

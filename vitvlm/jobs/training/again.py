"""A training that runs again on a workdir: what may differ from before, what stays, and what is said of it."""

from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vitvlm.core import config as config_lib
from vitvlm.core.config import ConfigError
from vitvlm.jobs.training.setup import TrainingSetup
from vitvlm.training import continuing, workdir
from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.progress import Progress
from vitvlm.training.writers import Writer

ANYTHING = (".*",)
"""The pattern of all fields: those of a training that goes on elsewhere, until it has a checkpoint of its own."""


def changeable(accept_changed_data: bool, folder: epath.PathLike) -> tuple[str, ...]:
    """Returns the fields that may differ from those with which a workdir began; see `training.workdir.check`."""
    if just_continued(folder):
        return ANYTHING
    return workdir.CHANGEABLE + workdir.WITH_CHANGED_DATA * accept_changed_data


def just_continued(folder: epath.PathLike) -> bool:
    """Tells whether a workdir's newest checkpoint is that of the training from which it goes on."""
    continued = continuing.read(folder)
    if continued is None:
        return False
    with Checkpoints(epath.Path(folder) / workdir.CHECKPOINTS, read_only=True) as checkpoints:
        return checkpoints.latest_step() == continued.step


def check_length(training: TrainingSetup, checkpoints: Checkpoints, folder: epath.Path) -> None:
    """Raises ConfigError for a training that is to end before its newest checkpoint."""
    done = checkpoints.latest_step()
    if done is not None and done > (total := training.clock.total_steps):
        raise ConfigError(
            f"config.total: {training.section.total!r} is {total} steps, and {folder} holds a checkpoint of step "
            f"{done}: give a longer one, or evaluate a checkpoint as it is by scripts/evaluate.py --step"
        )


def tell(
    progress: Progress,
    writer: Writer,
    step: int,
    before: Mapping[str, Any],
    training: TrainingSetup,
    config: Mapping[str, Any],
) -> None:
    """Says which fields have changed since the training was here last; metrics.jsonl keeps what changes its course."""
    if said := workdir.changes(before, config):
        progress.note(f"changed: {said}")
    if said := workdir.changes(before, config, workdir.UNTOLD):
        rate = float(training.optimizer()[1](step))
        progress.note(f"from step {step} on, the learning rate follows the new config: the next one is {rate:.3g}")
        writer.write(step, {"config/changed": said})


def going_on(config: ConfigDict | Mapping[str, Any], folder: epath.PathLike) -> dict[str, Any]:
    """The config with the classes under which the same training began in a workdir, so that names keep their labels.

    Classes that the config gives itself stay, and so does a config that is another training's.
    """
    plain = config_lib.plain(config)
    before = workdir.began(folder) or {}
    free = (*workdir.CHANGEABLE, "classes", "model/num_classes", *workdir.WITH_CHANGED_DATA)
    free += ANYTHING if continuing.read(folder) else ()
    if plain.get("classes") is None and before.get("classes") and not workdir.differing(before, plain, free):
        plain["classes"] = before["classes"]
    return plain

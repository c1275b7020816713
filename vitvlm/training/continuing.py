"""A training that goes on in another workdir: with the newest checkpoint and the metrics of the first, which stays.

There every field may differ, as long as the state of the first fits: a new learning rate, other augmentations, another
batch size. The new workdir's `continued.json` says where it comes from. Until it has a checkpoint of its own its fields
may still change; from then on it is a workdir as any.
"""

import dataclasses
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from vitvlm.core import own_files
from vitvlm.training import lock
from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.workdir import CHECKPOINTS, CONFIG, WorkdirError, began, read_config

NAME = "continued.json"
COPIED = ("metrics.jsonl", "files.json")
UNFINISHED = "copying"  # ends the name of a checkpoint that is being copied


@dataclasses.dataclass(frozen=True)
class Continued:
    """The workdir that a training comes from, and the checkpoint of that which it began with."""

    workdir: str
    step: int


def read(folder: epath.PathLike) -> Continued | None:
    """Reads where the training of a workdir comes from; None if it began there."""
    file = epath.Path(folder) / NAME
    found = own_files.read(file, "workdir", "step") if file.exists() else None
    return None if found is None else Continued(found["workdir"], found["step"])


def begin(source: epath.PathLike, folder: epath.PathLike, force: bool = False) -> Continued:
    """Makes a workdir that goes on where the training of another is; one that was made so before stays as it is.

    Args:
      source: the workdir with the checkpoint.
      folder: the new one.
      force: break the lock of another job that holds the new one.

    Raises WorkdirError for a source without a checkpoint, and a folder in which another training began.
    """
    source, folder = epath.Path(source), epath.Path(folder)
    if source.resolve() == folder.resolve():
        raise WorkdirError(f"--continue_as={folder}: is the workdir itself; give a new folder")
    with lock.hold(folder, force):
        if jax.process_index() == 0:
            _begin(source, folder)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("vitvlm: a workdir is copied")
    return read(folder)


def _begin(source: epath.Path, folder: epath.Path) -> None:
    there = read(folder)
    if there is not None:
        if epath.Path(there.workdir).resolve() != source.resolve():
            raise WorkdirError(f"--continue_as={folder}: goes on from {there.workdir} already; give a new folder")
        return
    if began(folder) is not None:
        raise WorkdirError(f"--continue_as={folder}: another training began there; give a new folder")
    config = read_config(source)
    step = _newest(source)
    for path in (source / CHECKPOINTS).iterdir():
        if path.name == str(step) or path.name.startswith("frozen"):
            _copy(path, folder / CHECKPOINTS / path.name)
    for name in COPIED:
        if (source / name).exists():
            (folder / name).write_bytes((source / name).read_bytes())
    own_files.write(folder / CONFIG, config)
    own_files.write(folder / NAME, dataclasses.asdict(Continued(str(source), step)))


def _newest(source: epath.Path) -> int:
    if (source / CHECKPOINTS).is_dir():
        with Checkpoints(source / CHECKPOINTS, read_only=True) as checkpoints:
            step: Any = checkpoints.latest_step()
        if step is not None:
            return step
    raise WorkdirError(f"{source}: has no checkpoint to go on from; train there first, or leave out --continue_as")


def _copy(path: epath.Path, to: epath.Path) -> None:
    """Copies a folder; under its name there is the whole of it or nothing."""
    unfinished = to.with_name(f"{to.name}.{UNFINISHED}")
    for each in (unfinished, to):
        if each.exists():
            each.rmtree()
    _copy_into(path, unfinished)
    unfinished.rename(to)


def _copy_into(path: epath.Path, to: epath.Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for each in path.iterdir():
        if each.is_dir():
            _copy_into(each, to / each.name)
        else:
            (to / each.name).write_bytes(each.read_bytes())

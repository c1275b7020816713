"""The folder of a training: `config.json`, `metrics.jsonl`, `checkpoints/` and what evaluations write."""

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from vitvlm.core import own_files, renames
from vitvlm.core.config import ConfigError
from vitvlm.training.records import DamagedError, Record, line

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
STAGES = "stages.json"  # of a training in stages: their order, and the metrics of those that are done
_LOG = logging.getLogger(__name__)

UNTOLD = (
    *("log/.*", "evals/.*", "checkpoint/.*", "data/workers", "data/max_unreadable_fraction"),
    "feature_cache/path",
)
"""Fields that do not touch what is computed."""

CHANGEABLE = ("total", "mesh(/.*)?", "sharding(/.*)?", *UNTOLD)
"""Fields that may differ when a training goes on: it may end later, and lie on other devices."""

WITH_CHANGED_DATA = ("data/class_names(/.*)?",)
"""Fields that may differ too when changed data are accepted: a renamed class is given its name of before."""


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages of a training: their names in order, and the metrics of each that is done."""

    order: tuple[str, ...]
    done: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


def read_stages(workdir: epath.PathLike) -> Stages | None:
    """Reads the stages of a workdir; None if it has none, or if the file is damaged."""
    file = epath.Path(workdir) / STAGES
    found = own_files.read(file) if file.exists() else None
    return None if found is None else Stages(tuple(found["order"]), dict(found["done"]))


def write_stages(workdir: epath.PathLike, stages: Stages) -> None:
    """Writes the stages into a workdir."""
    own_files.write(epath.Path(workdir) / STAGES, dataclasses.asdict(stages))


def latest_stage(workdir: epath.PathLike) -> epath.Path:
    """Returns the workdir, or of a training in stages the folder of the latest that has begun."""
    workdir = epath.Path(workdir)
    stages = read_stages(workdir)
    if stages is None:
        return workdir
    begun = [name for name in stages.order if (workdir / name / CHECKPOINTS).is_dir()]
    return workdir / (begun or stages.order[:1])[-1]


class WorkdirError(RuntimeError):
    """A workdir that cannot be used; one line that says why."""


def check(workdir: epath.PathLike, config: Mapping[str, Any], changeable: Sequence[str] = CHANGEABLE) -> epath.Path:
    """Makes the workdir, and checks the config against the one that it began with, if any.

    A training claims its workdir (`claim`) with its first step: what failed before may come back with another config.

    Args:
      workdir: made with its parents if it is not there.
      config: the resolved config: nested dictionaries of JSON values.
      changeable: regexes over field paths ("log/every"); fields that match one may differ from before.

    Raises WorkdirError if the folder cannot be written, and ConfigError, with every differing field, if another
    config began there.
    """
    workdir = epath.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        before = began(workdir)
        if before is not None:
            _compare(workdir, before, json.loads(json.dumps(config)), changeable)
    except OSError as error:
        raise _unwritable(workdir, error) from error
    return workdir


def claim(workdir: epath.PathLike, config: Mapping[str, Any], changeable: Sequence[str] = CHANGEABLE) -> epath.Path:
    """Writes the resolved config into the workdir after `check`, and raises what that raises.

    Every process checks; the first one writes.
    """
    workdir = check(workdir, config, changeable)
    try:
        if jax.process_index() == 0:
            own_files.write(workdir / CONFIG, config)
    except OSError as error:
        raise _unwritable(workdir, error) from error
    return workdir


def _unwritable(workdir: epath.Path, error: OSError) -> WorkdirError:
    return WorkdirError(f"workdir {workdir} cannot be written: {line(error)}; choose another --workdir")


def differing(before: Mapping[str, Any], now: Mapping[str, Any], changeable: Sequence[str] = CHANGEABLE) -> list[str]:
    """Lists the paths of the fields in which two configs differ, but for those that match a regex of `changeable`."""
    fields, others = _fields(before), _fields(json.loads(json.dumps(now)))
    free = [re.compile(pattern) for pattern in changeable]
    return [
        name
        for name in sorted({*fields, *others})
        if fields.get(name, ...) != others.get(name, ...) and not any(pattern.fullmatch(name) for pattern in free)
    ]


def read_config(workdir: epath.PathLike) -> dict[str, Any]:
    """The resolved config of the training in a workdir; of its newest checkpoint, if config.json is gone or damaged.

    Raises WorkdirError if there is neither.
    """
    found = began(workdir)
    if found is None:
        raise WorkdirError(f"{workdir} is not the workdir of a training: no readable {CONFIG} there")
    return found


def began(workdir: epath.PathLike) -> dict[str, Any] | None:
    """Reads the config that began in a workdir, also if its file is gone or damaged; None if none did, or none is left.

    Fields that had other names when it was written have today's (`core.renames`).
    """
    workdir = epath.Path(workdir)
    file = workdir / CONFIG
    found = own_files.read(file) if file.exists() else None
    if found is not None:
        return renames.renamed(found)
    records = {
        int(path.name): path / "record" / "metadata" for path in workdir.glob("checkpoints/*") if path.name.isdigit()
    }
    for step in sorted(records, reverse=True):
        try:
            config = dict(Record.read(records[step]).config)
        except DamagedError:
            continue
        if config:
            _LOG.warning("%s: is gone or damaged; checkpoint %d holds the config too", file, step)
            return renames.renamed(config)
    if file.exists():
        _LOG.warning("%s: is damaged, and no checkpoint holds the config: this job's config replaces it", file)
    return None


def changes(before: Mapping[str, Any], now: Mapping[str, Any], changeable: Sequence[str] = ()) -> str:
    """Says in which fields two configs differ, but for those of `changeable`; "" for none."""
    fields, others = _fields(before), _fields(json.loads(json.dumps(now)))
    names = differing(before, now, changeable)
    return "; ".join(f"{name}: {_show(fields, name)} before, {_show(others, name)} now" for name in names)


def _compare(workdir: epath.Path, before: Mapping, now: Mapping, changeable: Sequence[str]) -> None:
    if shown := changes(before, now, changeable):
        only = changes(before, now, (*changeable, *WITH_CHANGED_DATA)) == shown
        raise ConfigError(
            f"workdir {workdir} began with another config ({shown}): set these fields back, choose another --workdir, "
            "or go on from its newest checkpoint with them by --continue_as=NEWDIR; "
            f"here only {', '.join(changeable)} may change"
            f"{'' if only else ', and data/class_names with --accept_changed_data'}"
        )


def _fields(config: Mapping) -> dict[str, Any]:
    """Fields by path; a list is one field."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            fields |= {f"{name}/{inner}": item for inner, item in _fields(value).items()}
        else:
            fields[name] = value
    return fields


def _show(fields: Mapping[str, Any], name: str) -> str:
    return repr(fields[name]) if name in fields else "absent"

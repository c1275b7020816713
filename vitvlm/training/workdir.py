"""The folder of a training: `config.json`, `metrics.jsonl`, `checkpoints/` and what evaluations write."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from vitvlm.core.config import ConfigError
from vitvlm.training.records import line

CHANGEABLE = ("log/.*", "evals/.*", "checkpoint/.*", "data/workers", "data/bad_share")
"""Fields that may differ when a training goes on: they do not touch what is computed."""


class WorkdirError(RuntimeError):
    """A workdir that cannot be used; one line that says why."""


def check(workdir: epath.PathLike, config: Mapping[str, Any], changeable: Sequence[str] = CHANGEABLE) -> epath.Path:
    """Makes the workdir, and checks that the config is the one that began there, if one did.

    A training claims its workdir (`claim`) with its first step: what failed before may come back with another config.

    Args:
      workdir: made with its parents if it is not there.
      config: the resolved config: nested dictionaries of JSON values.
      changeable: regexes over field paths ("log/every"); fields that match one may differ from before.

    Raises WorkdirError if the folder cannot be written, and ConfigError, with every differing field, if another
    config began there.
    """
    workdir = epath.Path(workdir)
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if file.exists():
            _compare(workdir, json.loads(file.read_text()), json.loads(json.dumps(config)), changeable)
    except json.JSONDecodeError as error:
        raise WorkdirError(
            f"{file} is damaged: {line(error)}; remove it if you know the config to be the same"
        ) from error
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
            temporary = workdir / "config.json.tmp"
            temporary.write_text(json.dumps(config, indent=2) + "\n")
            temporary.replace(workdir / "config.json")
    except OSError as error:
        raise _unwritable(workdir, error) from error
    return workdir


def _unwritable(workdir: epath.Path, error: OSError) -> WorkdirError:
    return WorkdirError(f"workdir {workdir} cannot be written: {line(error)}; choose another --workdir")


def read_config(workdir: epath.PathLike) -> dict[str, Any]:
    """The resolved config of the training in a workdir. Raises WorkdirError if there is none, or it is damaged."""
    file = epath.Path(workdir) / "config.json"
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise WorkdirError(f"{file}: damaged: {line(error)}") from error
    except OSError as error:
        raise WorkdirError(f"{workdir} is not the workdir of a training: no readable config.json there") from error


def _compare(workdir: epath.Path, before: Mapping, now: Mapping, changeable: Sequence[str]) -> None:
    before, now = _fields(before), _fields(now)
    free = [re.compile(pattern) for pattern in changeable]
    differing = [
        f"{name}: {_show(before, name)} before, {_show(now, name)} now"
        for name in sorted({*before, *now})
        if before.get(name, ...) != now.get(name, ...) and not any(pattern.fullmatch(name) for pattern in free)
    ]
    if differing:
        raise ConfigError(
            f"workdir {workdir} began with another config ({'; '.join(differing)}): "
            f"choose another --workdir, or set these fields back; only {', '.join(changeable)} may change"
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

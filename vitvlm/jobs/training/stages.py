"""Trains in stages, each from the parameters of the one before: one config, one workdir with a folder for each stage.

config.stages = dict(
    order=("align", "instruct"),
    align=dict(total="1 epochs", optimizer=dict(freeze=(("connector/.*", False), (".*", True)))),
    instruct=dict(total="3 epochs", schedule=dict(peak=2e-5), data=dict(source="mix:…")),
)

A stage's section holds the fields that differ in it, merged field by field; None takes a whole section out. All stages
are set up, and so checked, before the first begins.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from vitvlm.core import config as config_lib
from vitvlm.core import rules
from vitvlm.core.config import ConfigError
from vitvlm.core.paths import flatten, unflatten
from vitvlm.data.errors import DataError
from vitvlm.jobs import fields
from vitvlm.jobs.training import again, init_from
from vitvlm.jobs.training import train as one
from vitvlm.training import continuing, lock, partial, storage, workdir

ORDER = "order"


def train(
    config: ConfigDict | Mapping[str, Any],
    folder: epath.PathLike,
    force: bool = False,
    accept_changed_data: bool = False,
    say: Callable[[str], None] = print,
    continue_as: epath.PathLike | None = None,
) -> dict[str, float]:
    """Runs a job, in its stages if its config has any, and returns the metrics at the end of the last one.

    Run again on the same workdir, it goes on in the stage in which it was, bit for bit. Stages that are done are not
    run again. For arguments and errors see `train.train`; messages about one stage begin with its name.

    With `continue_as` the training goes on in that folder, from the newest checkpoint of the workdir, which stays as it
    is; every field may then differ, see `training.continuing`.
    """
    plain = config_lib.plain(config)
    if continue_as is not None:
        if fields.STAGES in plain:
            raise ConfigError("--continue_as: a training in stages has none; begin anew with init_from=dict(path=…)")
        continuing.begin(folder, continue_as, force)
        folder = continue_as
    if fields.STAGES not in plain:
        return one.train(plain, folder, force, accept_changed_data)
    folder = epath.Path(folder)
    sections = configs(plain)
    with lock.hold(folder, force):
        stages = _begun(folder, tuple(sections))
        prepared: dict[str, one.Prepared] = {}
        for name, section in sections.items():
            before = next(reversed(prepared), None)
            with _named(name):
                prepared[name] = one.prepare(_after(section, before, folder), folder / name)
                if before is not None:
                    _check_parameters(prepared[before], prepared[name])
        for number, (name, each) in enumerate(prepared.items(), 1):
            title = f"stage {number} of {len(prepared)}, {name}"
            with _named(name):
                if name in stages.done:
                    workdir.check(
                        folder / name,
                        each.job.config,
                        (*again.changeable(accept_changed_data, folder / name), INHERITED),
                    )
                    say(f"{title}: done")
                    continue
                say(title)
                metrics = one.run(each, folder / name, force, accept_changed_data, (INHERITED,))
            stages = dataclasses.replace(stages, done={**stages.done, name: metrics})
            if jax.process_index() == 0:
                workdir.write_stages(folder, stages)
    return dict(stages.done[stages.order[-1]])


INHERITED = "init_from/path"
"""The field that is the place of the stage before, which may move with the workdir."""


def configs(config: ConfigDict | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the config of each stage by its name, in order, without what the stage before decides.

    Raises ConfigError for stages without an order, an order that names others, and names that are no folder's.
    """
    plain = config_lib.plain(config)
    sections = dict(plain.pop(fields.STAGES))
    order = sections.pop(ORDER, tuple(sections) if len(sections) == 1 else None)
    where = f"config.{fields.STAGES}"
    if not sections:
        raise ConfigError(f"{where}: empty; give at least one stage")
    if order is None:
        raise ConfigError(f"{where}.{ORDER}: missing; write which comes first, such as {tuple(sections)!r}")
    order = (order,) if isinstance(order, str) else tuple(order)
    if len(set(order)) < len(order) or not order:
        raise ConfigError(f"{where}.{ORDER}: {order!r} names a stage twice, or none")
    for name in order:
        if name not in sections:
            raise ConfigError(f"{where}.{ORDER}: no stage {name!r}; {config_lib.suggest(name, sections)}")
        if not isinstance(sections[name], Mapping):
            raise ConfigError(f"{where}.{name}: {sections[name]!r:.60} is no section of fields")
        if not name.isidentifier():
            raise ConfigError(f"{where}.{name}: a stage's name becomes a folder: letters, digits and _ only")
    later = {name: value for name, value in plain.items() if name != "init_from"}
    return {name: _merged(later if place else plain, sections[name]) for place, name in enumerate(order)}


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with changes: sections are merged; None takes one out, a name of its own replaces it as a whole."""
    merged = dict(base)
    for name, value in changes.items():
        before = base.get(name)
        if value is None and isinstance(before, Mapping):
            del merged[name]
        elif isinstance(value, Mapping) and isinstance(before, Mapping) and not _other_kind(before, value):
            merged[name] = _merged(before, value)
        else:
            merged[name] = value
    return merged


def _other_kind(before: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    """Tells whether a section names something else, whose fields the fields before are none of."""
    return any(name in value and value[name] != before.get(name) for name in ("name", "type"))


def _after(config: Mapping[str, Any], before: str | None, folder: epath.Path) -> dict[str, Any]:
    """The config of a stage that begins with the parameters at the end of the one before."""
    if before is None:
        return dict(config)
    own = dict(config.get("init_from") or {})
    allowed = [field.name for field in dataclasses.fields(fields.InitFrom) if field.name != "path"]
    if unknown := [name for name in own if name not in allowed]:
        raise ConfigError(
            f"config.init_from.{unknown[0]}: a later stage begins with the parameters of the one before, {before}; it "
            f"may have {', '.join(allowed)}"
        )
    return {**config, "init_from": {"path": str(folder / before), **own}}


def _check_parameters(before: one.Prepared, after: one.Prepared) -> None:
    """Raises ConfigError for a stage whose parameters the one before does not have, as `init_from` would."""
    section = config_lib.call(fields.InitFrom, after.job.config["init_from"], "config.init_from")
    source, target = (
        flatten(init_from.merged(each.job.model.variable_shapes), storage.is_quantized) for each in (before, after)
    )
    values = {path: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for path, leaf in source.items()}
    rules_of, where = section.rules, "config.init_from.rules"
    partial.matched(target, unflatten(values), rules_of, after.job.model.roles(), where, section.ignore)


@contextlib.contextmanager
def _named(stage: str) -> Iterator[None]:
    """Begins the message of an error that is about one stage with its name."""
    try:
        yield
    except (ConfigError, DataError, rules.RuleError) as error:
        raise type(error)(f"stage {stage}: {error}") from error


def _begun(folder: epath.Path, order: tuple[str, ...]) -> workdir.Stages:
    """The stages of a workdir, noted there. Raises ConfigError where others have begun."""
    found = workdir.read_stages(folder)
    if found is not None and found.order != order:
        begun = [name for name in found.order if workdir.began(folder / name) is not None]
        if begun and found.order[: len(begun)] != order[: len(begun)]:
            raise ConfigError(
                f"config.{fields.STAGES}.{ORDER}: workdir {folder} began with {', '.join(found.order)}, and this job "
                f"has {', '.join(order)}: choose another --workdir"
            )
    stages = workdir.Stages(order, {} if found is None else found.done)
    if jax.process_index() == 0:
        workdir.write_stages(folder, stages)
    return stages

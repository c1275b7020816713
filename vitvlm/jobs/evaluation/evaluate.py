"""Scores a trained checkpoint with any evaluators: one table, and JSON in the workdir."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vitvlm import evaluation
from vitvlm.core import config as config_lib
from vitvlm.core import own_files
from vitvlm.jobs import data_files, fields
from vitvlm.jobs.evaluation import evaluations
from vitvlm.jobs.evaluation.prediction import Predictor
from vitvlm.jobs.setup.data import DataSetup
from vitvlm.jobs.setup.model import ModelSetup
from vitvlm.nn.lora import attach
from vitvlm.training import chosen, lock
from vitvlm.training.checkpoints import Checkpoints
from vitvlm.training.workdir import CHECKPOINTS, latest_stage, read_config

EVALUATIONS = "evaluations"
REPLACED = ("evals", "data", "batch_size")
"""Sections of a training's config that an evaluation may replace."""
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Row:
    """One evaluator's result on one checkpoint."""

    name: str
    step: int
    result: evaluation.Result


def evaluate(
    folder: epath.PathLike,
    names: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    step: chosen.Which = None,
    force: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Runs evaluators on a checkpoint of a workdir.

    Args:
      folder: the workdir of a training; of one in stages, the latest that has begun is meant, or a stage's own folder.
      names: sections of the config's `evals`, or evaluator types, which then run with their defaults; all sections
        by default.
      config: its `evals`, `data` and `batch_size`, where it has them, stand in for the training's own.
      step: the checkpoint: "latest" (the default), "best", a step, "best:ema" …; see `training.chosen`.
      force: break the lock of another evaluation in this workdir. A training may go on beside.
      changes: single fields of those sections that stand in for the training's own, where no `config` is given. A
        section of `evals` that the training lacks is the evaluator of that name.

    Where the config's data prepare images otherwise than the training's, the protocol says so.

    Results are written to `evaluations/<step>/<name>/` and, together, to `evaluations/<step>/results.json`.
    Raises ConfigError, WorkdirError, CheckpointError or DataError with one line that says what to do.
    """
    folder = latest_stage(folder)
    own = read_config(folder)
    replaced = config_lib.plain(config or {}) or _merged(own, config_lib.plain(changes or {}))
    if "classes" not in own and own["model"].get("num_classes"):
        own["classes"] = DataSetup.of(own).open().source.label_names  # by a version that kept no names of classes
    config = {**own, **{name: replaced[name] for name in REPLACED if name in replaced}}
    data = DataSetup.of(config)
    model = ModelSetup.of(config, data)
    evals = sections(config, names)
    wanted, best = chosen.Choice.of(step), chosen.rule(own)
    with Checkpoints(folder / CHECKPOINTS, best=best, read_only=True) as checkpoints:
        restored = checkpoints.variables(model.target, wanted.step(checkpoints), wanted.ema)
    note = prepared(data.eval.ops, own["data"]["eval"].get("ops"), "the training's own")
    variables = {**restored.state, "params": attach(restored.state["params"])}
    return run(model, data, evals, variables, folder, restored.step, force, note)


def _merged(own: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that an evaluation may replace, with single fields changed."""
    if others := [name for name in changes if name not in REPLACED]:
        raise config_lib.ConfigError(
            f"--config.{others[0]}: an evaluation takes fields of {', '.join(REPLACED)}; the rest is the training's"
        )
    return {name: _overlaid(own.get(name), value) for name, value in changes.items()}


def _overlaid(own: Any, changes: Any) -> Any:
    if not (isinstance(own, Mapping) and isinstance(changes, Mapping)):
        return changes
    return {**own, **{name: _overlaid(own.get(name), value) for name, value in changes.items()}}


def prepared(ops: str | None, own: str | None, whose: str) -> str:
    """Returns a protocol's note on images that are not prepared by the model's own operations; "" if they are."""
    if own is None or ops == own:
        return ""
    return f"images prepared by config.data.eval.ops, {ops!r}, not by {whose}, {own!r}"


def run(
    model: ModelSetup,
    data: DataSetup,
    chosen: Mapping[str, fields.Section],
    variables: Mapping[str, Any],
    folder: epath.Path,
    step: int = 0,
    force: bool = False,
    note: str = "",
) -> list[Row]:
    """Runs the chosen `sections` of a config and writes their results as those of checkpoint `step`.

    The note ends the protocol of every evaluator whose images are prepared by `data.eval.ops`.
    Raises WorkdirError if another evaluation of this workdir is running, unless `force` breaks its lock.
    """
    data.check_class_names()
    with lock.hold(folder / EVALUATIONS, force) as held:
        evals = evaluations.build(model, data, chosen, note)
        return _run(Predictor(model.task, model.mesh), evals, variables, folder, step, held)


def _run(
    predict: Predictor,
    evals: Sequence[evaluations.Evaluation],
    variables: Mapping[str, Any],
    folder: epath.Path,
    step: int,
    held: lock.Lock | None,
) -> list[Row]:
    console = Console(stderr=True, quiet=jax.process_index() > 0)
    accounts = {each.name: each.source.files for each in evals}
    for line in data_files.lines(accounts):
        console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)
    rows = []
    for each in evals:
        with console.status(f"{each.name} on checkpoint {step}"):
            rows.append(Row(each.name, step, each.run(predict, variables, results_folder(folder, step) / each.name)))
    if held is not None:
        held.check()
        _write(results_folder(folder, step) / "results.json", rows)
        data_files.save(results_folder(folder, step), accounts)
    return rows


def results_folder(folder: epath.Path, step: int) -> epath.Path:
    """Folder with the evaluations of a checkpoint."""
    return folder / EVALUATIONS / f"{step:08d}"


def metrics_before(folder: epath.Path, name: str, step: int) -> dict[int, dict[str, float]]:
    """Metrics of an evaluation of a training at the steps before this one, by step."""
    found = {}
    for place in (folder / EVALUATIONS).glob("*"):
        path = place / name / "result.json"
        if (
            place.name.isdigit()
            and int(place.name) < step
            and path.exists()
            and (own := own_files.read(path, "metrics"))
        ):
            found[int(place.name)] = own["metrics"]
    return found


def table(results: Mapping[str, Sequence[Row]]) -> Group:
    """The results of one or more workdirs, by the part of their paths that differs.

    Below them the protocol of each figure, and the pages that were written.
    """
    several = len(results) > 1
    names = _short(list(results)) if several else {}
    shown = Table(*(["workdir"] if several else []), "step", "evaluation", "metric", "value", "interval")
    for folder, rows in results.items():
        which = [names[folder]] if several else []
        for row in rows:
            for metric, value, interval in figures(row.result.metrics):
                shown.add_row(*which, str(row.step), row.name, metric, value, interval)
            shown.add_section()
    protocols = {(row.name, row.result.protocol): None for rows in results.values() for row in rows}
    pages = [(row.name, row.result.page) for rows in results.values() for row in rows if row.result.page]
    return Group(
        shown,
        *(Text(f"{name}: {protocol}") for name, protocol in protocols),
        *(Text(f"{name}: see {page}") for name, page in pages),
    )


def _short(folders: Sequence[str]) -> dict[str, str]:
    """Each folder's name without the parents that all have in common."""
    try:
        common = os.path.commonpath(folders)
    except ValueError:  # some are absolute, some are not
        return {folder: folder for folder in folders}
    return {folder: os.path.relpath(folder, common) for folder in folders}


def figures(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Lists (name, value, interval) of each metric; an interval's bounds have no rows of their own."""
    return [
        (name, f"{value:.4g}", f"{bounds[0]:.4g} to {bounds[1]:.4g}" if bounds else "")
        for name, value, bounds in evaluation.with_intervals(metrics)
    ]


def sections(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, fields.Section]:
    """The sections of a config's `evals` that are named, or all; an evaluator's type stands for one with its defaults.

    Raises ConfigError where there is none, and for a name that is neither.
    """
    types = evaluation.names()
    given = fields.read(fields.Evaluations, config).evals
    own = {name: {"type": name, **section} if name in types else section for name, section in given.items()}
    if not names:
        if not given:
            raise config_lib.ConfigError(f"the config has no evals; name some: {', '.join(evaluation.names())}")
        return own
    known = {**{name: {"type": name} for name in types}, **own}
    for name in names:
        if name not in known:
            raise config_lib.ConfigError(f"evals: no evaluation {name!r}; {config_lib.suggest(name, known)}")
    return {name: known[name] for name in names}


def _write(path: epath.Path, rows: Sequence[Row]) -> None:
    """All results of this checkpoint so far; those of other names stay."""
    before = _results_before(path)
    now = {row.name: {"protocol": row.result.protocol, "metrics": row.result.metrics} for row in rows}
    own_files.write(path, before | now)


def _results_before(path: epath.Path) -> dict[str, Any]:
    """Reads the results in a file; if it is damaged, collects them from each evaluation's own file."""
    if not path.exists():
        return {}
    found = own_files.read(path)
    if found is None or not all(isinstance(value, Mapping) and "metrics" in value for value in found.values()):
        aside = own_files.set_aside(path)
        _LOG.warning("%s: was damaged; it is rebuilt from each evaluation's own file, and kept as %s", path, aside.name)
        each = {
            file.parent.name: own_files.read(file, "protocol", "metrics") for file in path.parent.glob("*/result.json")
        }
        found = {name: {"protocol": own["protocol"], "metrics": own["metrics"]} for name, own in each.items() if own}
    return found

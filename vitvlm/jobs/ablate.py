"""A sweep: every variant under one budget, then a table, plots and a page. Run again, it resumes."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from vitvlm.core import own_files, renames
from vitvlm.core.config import ConfigError
from vitvlm.jobs.ablation import report, rows
from vitvlm.jobs.ablation.plan import Plan, plan, variant_folder
from vitvlm.jobs.ablation.stage import StageFailed, run_apart
from vitvlm.training import lock
from vitvlm.training.records import line

RESULT = "result.json"
RunStage = Callable[[Mapping[str, Any], epath.Path], Mapping[str, Any]]
Json = dict[str, Any]


def ablate(
    config: ConfigDict | Mapping[str, Any],
    folder: epath.PathLike,
    run_stage: RunStage = run_apart,
    say: Callable[[str], None] = print,
    force: bool = False,
) -> tuple[rows.Row, ...]:
    """Runs or resumes every variant, writes the report, and returns its rows.

    A finished variant is not run again; a failed one is, and an interrupted one resumes. The report (table.csv,
    table.md, plots/*.png, index.html) is written before each variant and at the end, so a sweep can be watched.

    Args:
      config: see `ablation.plan.Ablation`.
      folder: each training's workdir is variants/NAME/STAGE in it.
      run_stage: trains one config in one folder and returns {"metrics", "facts", "measured"}; it may raise StageFailed.
      say: takes a line for people.
      force: break the lock of another sweep that holds the folder.

    Raises ConfigError for a config that no variant could run, or if a finished variant was run with another config;
    WorkdirError if another sweep holds the folder; Interrupted after SIGTERM or SIGINT.
    """
    sweep = plan(config, folder)
    with lock.hold(folder, force) as held:
        return _ablate(sweep, epath.Path(folder), run_stage, say, held)


def _ablate(
    sweep: Plan, folder: epath.Path, run_stage: RunStage, say: Callable[[str], None], held: lock.Lock
) -> tuple[rows.Row, ...]:
    results = {variant.name: _finished(sweep, variant.name, folder) for variant in sweep.variants}
    for place, variant in enumerate(sweep.variants, start=1):
        head = f"[{place}/{len(sweep.variants)}] {variant.name}"
        if results[variant.name] is not None:
            say(f"{head}: finished before")
            continue
        held.check()
        _report(sweep, results, folder, say)
        results[variant.name] = _run(
            sweep, variant.name, folder, run_stage, lambda text, head=head: say(f"{head}{text}")
        )
        held.check()
    table = rows.read(sweep, results, folder)
    report.write(sweep, table, folder)
    say(f"{folder / report.PAGE}")
    if failed := [row for row in table if row.status == "failed"]:
        first = f"{failed[0].name}: {failed[0].failure}"
        say(f"{len(failed)} of {len(table)} variants failed, the first of them {first}; run again to try these anew")
    return table


def all_failed(table: Sequence[rows.Row]) -> bool:
    """Tells whether every row of a sweep has failed."""
    return all(row.status == "failed" for row in table)


def _report(sweep: Plan, results: Mapping[str, Json | None], folder: epath.Path, say: Callable[[str], None]) -> None:
    """Writes the report so far; one that cannot be written is said, and does not keep the other variants waiting."""
    try:
        report.write(sweep, rows.read(sweep, results, folder), folder)
    except Exception as error:
        say(f"the report could not be written, the sweep goes on: {type(error).__name__}: {line(error)}")


def _run(sweep: Plan, name: str, folder: epath.Path, run_stage: RunStage, say: Callable[[str], None]) -> Json:
    """Runs the stages of one variant one after the other; the result is also written when all are done."""
    stages: Json = {}
    for stage in sweep.stages:
        config = sweep.configs[name, stage.name]
        say(f": {stage.name}")
        try:
            if isinstance(config, ConfigError):
                raise StageFailed(str(config))
            stages[stage.name] = dict(run_stage(config, variant_folder(folder, name) / stage.name))
        except StageFailed as failure:
            say(f": {stage.name} failed: {failure}")
            failed = {"stage": stage.name, "message": str(failure), "details": failure.details}
            return {"stages": stages, "failed": failed}
    configs = {stage.name: sweep.configs[name, stage.name] for stage in sweep.stages}
    result = {"stages": stages, "configs": configs, "folder": str(folder)}
    path = variant_folder(folder, name) / RESULT
    path.parent.mkdir(parents=True, exist_ok=True)
    own_files.write(path, result)
    return result


def _finished(sweep: Plan, name: str, folder: epath.Path) -> Json | None:
    """The result of a variant that has one. Raises ConfigError if its config has changed since."""
    path = variant_folder(folder, name) / RESULT
    if not path.exists():
        return None
    result = own_files.read(path, "stages", "configs", "folder")
    if result is None:
        return None  # its trainings are done, and give the same result again
    for stage in sweep.stages:
        config = sweep.configs[name, stage.name]
        now = {} if isinstance(config, ConfigError) else _placeless(config, str(folder))
        before = _placeless(renames.renamed(result["configs"].get(stage.name, {})), result["folder"])
        changed = sorted(field for field in {*now, *before} if now.get(field, ...) != before.get(field, ...))
        if changed:
            first, more = changed[0], f", and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise ConfigError(
                f"variant {name} is finished in {path.parent} with another config ({stage.name}.{first} was "
                f"{before.get(first, 'absent')!r}, is {now.get(first, 'absent')!r}{more}): "
                "choose another --workdir, or remove that folder"
            )
    return result


def _placeless(config: Json, folder: str) -> Json:
    """A config's fields as JSON has them, without the sweep's folder, so that a sweep can be moved."""
    return rows.flat(json.loads(json.dumps(config).replace(folder, "")))

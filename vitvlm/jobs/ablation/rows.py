"""A sweep's results as rows: scores with intervals and paired differences, costs, curves and pictures."""

import dataclasses
import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vitvlm.core import own_files
from vitvlm.core.config import ConfigError
from vitvlm.evaluation import bootstrap
from vitvlm.evaluation.bootstrap import Interval
from vitvlm.jobs.ablation.plan import Plan, Score, variant_folder
from vitvlm.training import writers

Json = dict[str, Any]
_MOST_POINTS = 300
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A score of one variant.

    Attributes:
      estimate, low, high: the bounds are None where the evaluator gives no interval.
      protocol: how it was measured.
      behind: its difference from the best variant over the same examples (paired bootstrap); None for the best itself,
        or without per-example results.
    """

    estimate: float
    low: float | None
    high: float | None
    protocol: str
    behind: Interval | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """Results of one variant of a sweep.

    Attributes:
      status: "done", "failed" or "waiting".
      failure: what happened, in one line, and where; details is a traceback.
      scores: in the sweep's order; None where there is none yet.
      costs: facts and measurements by stage.
      curves: (step, training loss) by stage.
      pictures: of the last evaluation, by caption.
      line: the variant's.
    """

    name: str
    value: float
    status: str
    failure: str
    details: str
    scores: tuple[Measured | None, ...]
    costs: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, list[tuple[int, float]]]
    pictures: Mapping[str, epath.Path]
    line: str = ""


def read(sweep: Plan, results: Mapping[str, Json | None], folder: epath.Path) -> tuple[Row, ...]:
    """Rows in the sweep's order, from results and from the workdirs of the trainings."""
    rows = [_row(sweep, place, results[variant.name], folder) for place, variant in enumerate(sweep.variants)]
    for place, score in enumerate(sweep.scores):
        rows = _compared(rows, place, score, folder)
    return tuple(rows)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted path; a list is one field."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = value
    return fields


def differences(sweep: Plan) -> list[tuple[str, list[Any], bool]]:
    """Lists (field, its value in each variant, whether a variant sets it itself) of all fields that differ.

    Fields that no variant sets follow from others by reference: they are what the sweep carried along.
    """
    found = []
    for stage in sweep.stages:
        configs = [sweep.configs[variant.name, stage.name] for variant in sweep.variants]
        known = [flat({} if isinstance(config, ConfigError) else config) for config in configs]
        explicit = {name for variant in sweep.variants for name in flat(variant.overrides.get(stage.name, {}))}
        for name in dict.fromkeys(name for fields in known for name in fields):
            values = [fields.get(name) for fields in known if fields]
            places = [_placeless(value, sweep) for value in values]
            if any(place != places[0] for place in places):
                prefix = f"{stage.name}." if len(sweep.stages) > 1 else ""
                found.append((prefix + name, [fields.get(name) for fields in known], name in explicit))
    return found


def by_line(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each line of the plots, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.line, []).append(row)
    return found


def best(rows: tuple[Row, ...], place: int, score: Score) -> Row | None:
    """The row with the best estimate of a score."""
    scored = [row for row in rows if row.scores[place] is not None]
    choose = max if score.better == "max" else min
    return choose(scored, key=lambda row: row.scores[place].estimate) if scored else None


def _row(sweep: Plan, place: int, result: Json | None, folder: epath.Path) -> Row:
    variant = sweep.variants[place]
    result = result or {"stages": {}}
    own = variant_folder(folder, variant.name)
    failed = result.get("failed", {})
    status = "failed" if failed else "done" if "configs" in result else "waiting"
    message = f"{failed['stage']}: {failed['message']}" if failed else ""
    scores: list[Measured | None] = []
    for score in sweep.scores:
        stage, metric = score.metric.split(".", 1)
        metrics = result["stages"].get(stage, {}).get("metrics", {})
        if status == "done" and metric not in metrics:
            status = "failed"
            message = f"{stage}: gives no metric {metric}; there is: {', '.join(sorted(metrics)) or 'none'}"
        scores.append(_measure(metrics, metric, own / stage) if metric in metrics else None)
    return Row(
        name=variant.name,
        value=sweep.value(variant),
        status=status,
        failure=message,
        details=failed.get("details", ""),
        scores=tuple(scores),
        costs={name: stage.get("facts", {}) | stage.get("measured", {}) for name, stage in result["stages"].items()},
        curves={stage.name: _curve(own / stage.name) for stage in sweep.stages},
        pictures={
            f"{stage.name}: {path.parent.name}": path
            for stage in sweep.stages
            for path in _last_pictures(own / stage.name)
        },
        line=variant.line,
    )


def _measure(metrics: Mapping[str, float], metric: str, workdir: epath.Path) -> Measured:
    evaluation = _evaluation(workdir, metric)
    protocol = ""
    if evaluation is not None and (evaluation / "result.json").exists():
        protocol = str((own_files.read(evaluation / "result.json", "protocol") or {"protocol": ""})["protocol"])
    return Measured(metrics[metric], metrics.get(f"{metric}_low"), metrics.get(f"{metric}_high"), protocol)


def _evaluation(workdir: epath.Path, metric: str) -> epath.Path | None:
    """The folder of the last evaluation that gave a metric "NAME/…"."""
    found = sorted(workdir.glob(f"evaluations/*/{metric.split('/')[0]}"))
    return found[-1] if found else None


def _compared(rows: list[Row], place: int, score: Score, folder: epath.Path) -> list[Row]:
    """The rows, each with its paired difference from the best one in this score."""
    leader = best(tuple(rows), place, score)
    stage, metric = score.metric.split(".", 1)
    name = metric.split("/")[-1]
    key = {"top1": "correct", "accuracy": "score"}.get(name, name.removeprefix("top1_"))
    compared = []
    for row in rows:
        if leader is None or row is leader or row.scores[place] is None:
            compared.append(row)
            continue
        pair = [_evaluation(variant_folder(folder, each.name) / stage, metric) for each in (row, leader)]
        behind = _difference(pair, key)
        scores = list(row.scores)
        scores[place] = dataclasses.replace(row.scores[place], behind=behind)
        compared.append(dataclasses.replace(row, scores=tuple(scores)))
    return compared


def _difference(pair: list[epath.Path | None], key: str) -> Interval | None:
    if not all(folder is not None and (folder / bootstrap.EXAMPLES).exists() for folder in pair):
        return None
    try:
        return bootstrap.compare(*pair, key=key)
    except (KeyError, ValueError):  # no such per-example result, or not the same examples: there is no pair
        return None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        _LOG.warning("%s and %s: an %s is damaged, so there is no difference: %s", *pair, bootstrap.EXAMPLES, error)
        return None


def _curve(workdir: epath.Path) -> list[tuple[int, float]]:
    """Returns pairs (step, training loss), thinned to a few hundred points by means of neighbours."""
    if not (workdir / "metrics.jsonl").exists():
        return []
    points = writers.numbers(writers.read(workdir / "metrics.jsonl"), "train/loss")
    width = -(-len(points) // _MOST_POINTS)
    groups = [points[start : start + width] for start in range(0, len(points), max(width, 1))]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def _last_pictures(workdir: epath.Path) -> list[epath.Path]:
    """PNG files of the last evaluation of each name."""
    last = {path.parent.name: path for path in sorted(workdir.glob("evaluations/*/*/*.png"))}
    return list(last.values())


def _placeless(value: Any, sweep: Plan) -> Any:
    """A value without the variant's own folder in it, which differs for every variant and says nothing."""
    if isinstance(value, str):
        for variant in sweep.variants:
            value = value.replace(f"/variants/{variant.name}/", "/")
    return value

"""A trial of the visual-dependency score: does it find planted records, and does a training gain by leaving them out?

Four steps, each resumed where it was left: a training on all records; the scores of all of them by it, and how well
they tell planted records from others; two trainings of the same length, on the records with the highest scores, and on
as many drawn by chance; and how all three answer held-out questions.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vitvlm.core import config as config_lib
from vitvlm.core import own_files
from vitvlm.evaluation import bootstrap, dependency
from vitvlm.jobs import fields
from vitvlm.jobs.evaluation import evaluate
from vitvlm.jobs.training import train

RESULTS = "planted.json"
SCORER = "visual_dependency"
WAYS = ("all", "chosen", "random")


def run(config: Mapping[str, Any], folder: Path, keep: float, planted: str = "planted", force: bool = False) -> dict:
    """Runs the trial, and writes planted.json.

    Args:
      config: a training whose `data.train` has planted records, whose `data.eval` has none, and whose `evals` judge
        answers; its `total` is in steps or examples, so that all three trainings are as long.
      keep: the share of the records that the second and the third training keep.
      planted: the field of the records that says what was planted, "none" of the others.

    Raises ConfigError for a config whose length would change with the records, or without a score to compare by.
    """
    config = config_lib.plain(config)
    if not 0 < keep < 1:
        raise config_lib.ConfigError(f"keep: {keep} of the records; give a share between 0 and 1")
    if any(word in str(config.get("total")) for word in ("epoch", "%")):
        raise config_lib.ConfigError(
            f"config.total: {config['total']!r} changes with the records: give steps or examples"
        )
    data = fields.read(fields.Inputs, config).data
    section = {**data, **data["train"]}
    folder.mkdir(parents=True, exist_ok=True)
    train.train(config, folder / "all", force)
    own = {name: section[name] for name in ("source", "split") if name in section}
    changes = {"evals": {SCORER: {"type": SCORER, "planted": planted, "data": own}}}
    (scored,) = evaluate.evaluate(folder / "all", [SCORER], changes=changes, force=force)
    scores = evaluate.results_folder(folder / "all", scored.step) / SCORER / dependency.FILE
    files = {"chosen": Path(scores), "random": _by_chance(Path(scores), folder / "random.jsonl")}
    results: dict[str, Any] = {"keep": keep, "scores": dict(scored.result.metrics), "trained": {}}
    for way in WAYS:
        if way in files:
            chosen = {"scores": str(files[way]), "keep_share": keep}
            own_config = {**config, "data": {**config["data"], "train": {**config["data"]["train"], **chosen}}}
            train.train(own_config, folder / way, force)
        rows = evaluate.evaluate(folder / way, force=force)
        results["trained"][way] = {row.name: dict(row.result.metrics) for row in rows}
    results["gains"] = _gains(folder, [row.name for row in rows])
    own_files.write(folder / RESULTS, results)
    return results


def _by_chance(scores: Path, path: Path) -> Path:
    """Writes scores drawn by chance of the same records."""
    ids = [json.loads(line)["id"] for line in scores.read_text(encoding="utf-8").splitlines()]
    drawn = np.random.default_rng(0).random(len(ids))
    lines = (json.dumps({"id": id_, dependency.COLUMN: float(value)}) for id_, value in zip(ids, drawn))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _gains(folder: Path, names: list[str]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Gains of the chosen records over all and over others by chance, by paired bootstrap, of each evaluation."""
    gains: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name in names:
        places = {way: sorted((folder / way / evaluate.EVALUATIONS).glob(f"*/{name}"))[-1] for way in WAYS}
        with np.load(places["chosen"] / bootstrap.EXAMPLES) as saved:
            key = "score" if "score" in saved.files else "log_likelihood" if "log_likelihood" in saved.files else ""
        if key:
            gains[name] = {
                f"over {way}": tuple(bootstrap.compare(places["chosen"], places[way], key))
                for way in WAYS
                if way != "chosen"
            }
    if not gains:
        raise config_lib.ConfigError("config.evals: none has scores of each example: add questions")
    return gains


def table(results: Mapping[str, Any]) -> Table:
    """A table of how well the scores find planted records, and of what each training answers."""
    scores = results["scores"]
    found = ", ".join(f"{name} {scores[name]:.3f}" for name in scores if name.startswith("auroc"))
    shown = Table("evaluation", *WAYS, "chosen over all", "chosen over random", title=f"planted records found: {found}")
    for name, gains in results["gains"].items():
        key = next(iter(results["trained"]["all"][name]))
        values = [f"{results['trained'][way][name][key]:.4f}" for way in WAYS]
        differences = ["{:+.4f} [{:+.4f}, {:+.4f}]".format(*gains[f"over {way}"]) for way in ("all", "random")]
        shown.add_row(f"{name} ({key})", *values, *differences)
    return shown

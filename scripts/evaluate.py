"""Scores checkpoints: a table on the terminal, JSON and pictures in each workdir.

    python scripts/evaluate.py --workdir=workdirs/mae --evals=linear_probe_logistic,knn
    python scripts/evaluate.py --workdir=workdirs/finetuned,workdirs/scratch

Without --evals, all evaluations of each training's config run; --config gives others, with overrides as in train.py.
"""

from absl import flags
from rich.console import Console

from vitvlm.jobs import evaluate, launch

WORKDIRS = flags.DEFINE_list("workdir", None, "Workdirs of trainings, separated by commas.", required=True)
EVALS = flags.DEFINE_list("evals", [], "Names in the config's evals, or types of evaluators.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to evaluate; the latest by default.")
CONFIG = launch.define_config(required=False)


def main() -> None:
    results = {folder: evaluate.evaluate(folder, EVALS.value, CONFIG.value, STEP.value) for folder in WORKDIRS.value}
    Console().print(evaluate.table(results))


if __name__ == "__main__":
    launch.run(main)

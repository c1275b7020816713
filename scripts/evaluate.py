"""Scores a checkpoint: a table on the terminal, JSON and pictures in the workdir.

    python scripts/evaluate.py --workdir=workdirs/mae --evals=linear_probe_logistic,knn

Without --evals, all evaluations of the training's config run; --config gives others, with overrides as in train.py.
"""

from absl import flags
from rich.console import Console

from vitvlm.jobs import evaluate, launch

WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a training.", required=True)
EVALS = flags.DEFINE_list("evals", [], "Names in the config's evals, or types of evaluators.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to evaluate; the latest by default.")
CONFIG = launch.define_config(required=False)


def main() -> None:
    rows = evaluate.evaluate(WORKDIR.value, EVALS.value, CONFIG.value, STEP.value)
    Console().print(evaluate.table(rows))


if __name__ == "__main__":
    launch.run(main)

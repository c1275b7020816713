"""Scores checkpoints: a table on the terminal, JSON and pictures in each workdir.

    python scripts/evaluate.py --workdir=workdirs/mae --evals=linear_probe_logistic,knn
    python scripts/evaluate.py --workdir=workdirs/finetuned,workdirs/scratch
    python scripts/evaluate.py --weights=PATH --config=configs/evaluations/features.py:folder:IMAGES --workdir=WORKDIR

Without --evals, all evaluations of each training's config run; --config gives others. Without --config, overrides are
of the training's own: --evals=knn --config.evals.knn.ks="(1, 5)".
--step=best takes the best checkpoint, --step=1200:ema the averaged parameters of one; the latest is the default.
--weights are those of another code base, see docs/weights.md; the config then says what they are evaluated on, and
--fields, as in convert.py, what their own files do not say.
"""

from absl import flags
from rich.console import Console

from vitvlm.core.config import ConfigError
from vitvlm.jobs import launch
from vitvlm.jobs.evaluation import evaluate, weights

WORKDIRS = flags.DEFINE_list("workdir", None, "Workdirs of trainings, separated by commas.", required=True)
EVALS = flags.DEFINE_list("evals", [], "Names in the config's evals, or types of evaluators.")
STEP = launch.define_step()
WEIGHTS = flags.DEFINE_string("weights", None, "Weights from elsewhere to evaluate; results go to the one workdir.")
FIELDS = launch.define_fields()
CONFIG = launch.define_config(required=False)
FORCE = launch.define_force("evaluation")


def main() -> None:
    if WEIGHTS.value is None:
        if FIELDS.value:
            raise ConfigError("--fields describe --weights: give both, or neither")
        config, changes = (CONFIG.value, None) if CONFIG.present else (None, CONFIG.value)
        results = {
            folder: evaluate.evaluate(folder, EVALS.value, config, STEP.value, FORCE.value, changes)
            for folder in WORKDIRS.value
        }
    else:
        if len(WORKDIRS.value) != 1 or STEP.value is not None:
            raise ConfigError("--weights: give one --workdir, and no --step")
        (folder,) = WORKDIRS.value
        fields = launch.named_values(FIELDS.value)
        rows = weights.evaluate_weights(WEIGHTS.value, folder, EVALS.value, CONFIG.value, FORCE.value, fields)
        results = {folder: rows}
    Console().print(evaluate.table(results))


if __name__ == "__main__":
    launch.run(main)

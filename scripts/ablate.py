"""Runs a sweep under one budget and writes its table, plots and page; run again on the same workdir, it resumes.

    python scripts/ablate.py --config=configs/ablations/patch_size.py --workdir=workdirs/patch_size
    python scripts/ablate.py --config=configs/ablations/mask_ratio.py --workdir=workdirs/mask_ratio \
        --config.budget.pretrain="5 epochs"

The workdir then holds index.html (one self-contained page), table.csv, table.md, plots/ and each variant's trainings.
"""

import functools
import sys

from absl import flags

from vitvlm.jobs import ablate, launch
from vitvlm.jobs.ablation import stage

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the trainings and the report.", required=True)
CONFIG = launch.define_config()
FORCE = launch.define_force("sweep")
ACCEPT_CHANGED_DATA = launch.define_accept_changed_data()


def main() -> None:
    run_stage = functools.partial(stage.run_apart, force=FORCE.value, accept_changed_data=ACCEPT_CHANGED_DATA.value)
    table = ablate.ablate(CONFIG.value, WORKDIR.value, run_stage, force=FORCE.value)
    if ablate.all_failed(table):
        sys.exit(1)


if __name__ == "__main__":
    launch.run(main)

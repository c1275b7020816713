"""Trains a job from a config file; run again on the same workdir, it resumes.

python scripts/train.py --config=configs/vit_fashion.py --workdir=workdirs/vit --config.model.patch_size=7
"""

from absl import flags

from vitvlm.jobs import launch
from vitvlm.jobs.training import stages

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for config, metrics, checkpoints and evaluations.", required=True
)
CONFIG = launch.define_config()
FORCE = launch.define_force("training")
ACCEPT_CHANGED_DATA = launch.define_accept_changed_data()


def main() -> None:
    stages.train(CONFIG.value, WORKDIR.value, FORCE.value, ACCEPT_CHANGED_DATA.value)


if __name__ == "__main__":
    launch.run(main)

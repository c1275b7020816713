"""Trains a job from a config file; run again on the same workdir, it resumes.

python scripts/train.py --config=configs/vit_fashion.py --workdir=workdirs/vit --config.model.patch_size=7
python scripts/train.py --config=configs/vit_fashion.py --help
"""

from absl import flags

from vitvlm.jobs import launch

WORKDIR = launch.define_workdir("Folder for config, metrics, checkpoints and evaluations.")
CONFIG = launch.define_config()
PRINT_CONFIG = launch.define_print_config()
CONTINUE_AS = flags.DEFINE_string(
    "continue_as", None, "New folder in which the training of --workdir goes on, with any changed fields."
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Set up, compile and time a few steps: data, parameters, memory and time; nothing is written."
)
FORCE = launch.define_force("training")
ACCEPT_CHANGED_DATA = launch.define_accept_changed_data()


def main() -> None:
    if DRY_RUN.value:
        from vitvlm.jobs.training import dry_run

        return dry_run.run(CONFIG.value)
    workdir = launch.required(WORKDIR)
    launch.announce(f"trains in {CONTINUE_AS.value or workdir}; loading the program, the data and the model", CONFIG)
    from vitvlm.jobs.training import stages  # imports everything: help and wrong flags do not wait for it

    stages.train(CONFIG.value, workdir, FORCE.value, ACCEPT_CHANGED_DATA.value, continue_as=CONTINUE_AS.value)


if __name__ == "__main__":
    launch.run(main)

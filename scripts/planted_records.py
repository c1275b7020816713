"""Does the visual-dependency score find planted records, and does a training gain by leaving them out?

    python scripts/planted_records.py --config=CONFIG --workdir=WORKDIR --keep=0.7

CONFIG is a training whose data.train has planted records (source="scenes:ask,planted=0.3"), whose data.eval has none,
and whose evals judge answers. It trains three times, equally long: on all records, on the share --keep of them with the
highest scores by the first training, and on as many drawn by chance. The table also goes to WORKDIR/planted.json.
"""

from pathlib import Path

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch, planted

WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the three trainings and the results.", required=True)
KEEP = flags.DEFINE_float("keep", 0.7, "Share of the records that are kept.")
FIELD = flags.DEFINE_string("field", "planted", "Field of the records that says what was planted, or none.")
CONFIG = launch.define_config()
FORCE = launch.define_force("training")


def main() -> None:
    results = planted.run(CONFIG.value, Path(WORKDIR.value), KEEP.value, FIELD.value, FORCE.value)
    Console().print(planted.table(results))


if __name__ == "__main__":
    launch.run(main)

"""Times the input pipeline, from tars and from ArrayRecord, against PyTorch's DataLoader with Pillow.

    python scripts/benchmark_input.py --rounds=9

Decoding, a random crop to 224, flip, normalisation and tokens, of JPEGs that the script makes; on one core. Needs
PyTorch. Nothing else should run meanwhile.
"""

import tempfile
from pathlib import Path

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch
from vitvlm.jobs.benchmarks import input_speed

ROUNDS = flags.DEFINE_integer("rounds", 9, "Alternating rounds that are timed.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 500, "Images that are made; some 470 would be kept decoded, and too fast.")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "examples"
        input_speed.write_examples(folder, IMAGES.value)
        Console().print(input_speed.table(input_speed.measure(folder, ROUNDS.value)))


if __name__ == "__main__":
    launch.run(main)

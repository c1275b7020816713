"""Times `pretrained.load` against reading the same file into NumPy, and watches the memory of both.

    python scripts/benchmark_loading.py --variant=L/16

Nothing else should run meanwhile.
"""

import tempfile
from pathlib import Path

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch, loading

FOLDER = flags.DEFINE_string("folder", None, "A Hugging Face folder with one safetensors file; else one is made.")
VARIANT = flags.DEFINE_string("variant", "L/16", "Size of the ViT that is made.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Alternating rounds that are timed.", lower_bound=1)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(FOLDER.value or temporary)
        if not FOLDER.value:
            loading.write_example(folder, VARIANT.value)
        Console().print(loading.table(folder, loading.measure(folder, ROUNDS.value)))


if __name__ == "__main__":
    launch.run(main)

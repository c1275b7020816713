"""Times `pretrained.load` against reading the same file into NumPy, and watches the memory of both.

    python scripts/benchmark_loading.py --variant=L/16
    python scripts/benchmark_loading.py --variant=L/16 --devices=8 --against=CHECKOUT

The second loads onto the shards of simulated devices, in fresh processes, in turn with another checkout. Nothing else
should run meanwhile.
"""

import tempfile
from pathlib import Path

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch
from vitvlm.jobs.benchmarks import loading

FOLDER = flags.DEFINE_string("folder", None, "A Hugging Face folder with one safetensors file; else one is made.")
VARIANT = flags.DEFINE_string("variant", "L/16", "Size of the ViT that is made.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Alternating rounds that are timed.", lower_bound=1)

DEVICES = flags.DEFINE_integer("devices", 0, "Load onto the FSDP shards of so many simulated devices.", lower_bound=0)
AGAINST = flags.DEFINE_string("against", None, "Checkout of another version to compare with, with --devices.")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(FOLDER.value or temporary)
        if not FOLDER.value:
            loading.write_example(folder, VARIANT.value)
        if not DEVICES.value:
            Console().print(loading.table(folder, loading.measure(folder, ROUNDS.value)))
            return
        versions = {"this": Path(__file__).parents[1]}
        if AGAINST.value:
            versions["against"] = Path(AGAINST.value).absolute()
        found = loading.measure_shards(folder, ROUNDS.value, DEVICES.value, versions)
        Console().print(loading.shards_table(folder, found))


if __name__ == "__main__":
    launch.run(main)

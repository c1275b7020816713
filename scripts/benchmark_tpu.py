"""Compiles training steps for a TPU that need not be there: estimated cycles and memory, ours beside plain models.

    python scripts/benchmark_tpu.py --models=vit_b16,vit_l16,mae_b16,siglip_b16 --workdir=workdirs/benchmark_tpu

It needs a TPU's compiler: pip install "vitvlm[aot]".
"""

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch
from vitvlm.jobs.benchmarks import tpu

MODELS = flags.DEFINE_list("models", ["vit_b16"], "Models: vit, mae or siglip, then size and patch side.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for benchmark_tpu.json and benchmark_tpu.md.", required=True)
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "TPU topology, of which one chip is used.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Image side in pixels.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images per step.", lower_bound=1)


def main() -> None:
    measured = tpu.run(
        MODELS.value,
        batch_size=BATCH_SIZE.value,
        image_size=IMAGE_SIZE.value,
        topology=TOPOLOGY.value,
        workdir=WORKDIR.value,
    )
    Console().print(tpu.table(measured))


if __name__ == "__main__":
    launch.run(main)

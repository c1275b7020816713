"""Compiles training steps for a TPU that need not be there: estimated cycles and memory, ours beside plain models.

    python scripts/benchmark_tpu.py --models=vit_b16,vit_l16,mae_b16,siglip_b16 --workdir=workdirs/benchmark_tpu

With --fsdp, our steps alone, for all chips of the topology: memory of each, and what travels between them.

    python scripts/benchmark_tpu.py --fsdp --models=vit_l16 --batch_size=512 --topology=v5e:4x4 --workdir=workdirs/fsdp

It needs a TPU's compiler: pip install "vitvlm[aot]".
"""

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch
from vitvlm.jobs.benchmarks import tpu, tpu_sharded

MODELS = flags.DEFINE_list("models", ["vit_b16"], "Models: vit, mae or siglip, size and patch side; smollm2_s512.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for benchmark_tpu.json and benchmark_tpu.md.", required=True)
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "TPU topology, of which one chip is used, all with --fsdp.")
FSDP = flags.DEFINE_bool("fsdp", False, "All chips of the topology, with parameters, moments and examples split.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Image side in pixels.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images per step, of all chips.", lower_bound=1)


def main() -> None:
    job = tpu_sharded if FSDP.value else tpu
    measured = job.run(
        MODELS.value,
        batch_size=BATCH_SIZE.value,
        image_size=IMAGE_SIZE.value,
        topology=TOPOLOGY.value,
        workdir=WORKDIR.value,
    )
    Console().print(job.table(measured))


if __name__ == "__main__":
    launch.run(main)

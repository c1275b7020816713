"""Memory of training steps of which 90 % of the parameters are frozen, beside the sum of its parts: nothing is run.

    python scripts/frozen_memory.py --workdir=workdirs/frozen_memory
    python scripts/frozen_memory.py --topology=v5e:2x2 --stored=float32,int8 --workdir=workdirs/frozen_memory_tpu

A row for each way to train (plain, accumulated gradients, averaged parameters) and each storage of what is frozen. The
parts are computed from shapes: parameters, moments, averages; gradients, buffers, activations. A TPU's memory needs no
TPU, but its compiler: pip install "vitvlm[aot]".
"""

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch
from vitvlm.jobs.benchmarks import frozen_memory
from vitvlm.jobs.benchmarks.loss_memory import devices

SIZES = {
    name: flags.DEFINE_integer(name, value, text, lower_bound=1)
    for name, value, text in (
        ("width", 256, "Width of the ViT."),
        ("depth", 8, "Its layers, which are scanned."),
        ("heads", 4, "Its attention heads."),
        ("patch_size", 8, "Side of its patches."),
        ("image_size", 32, "Side of its images."),
        ("batch_size", 8, "Images in a batch."),
        ("classes", 10, "Classes of its head."),
    )
}
STORED = flags.DEFINE_list("stored", list(frozen_memory.STORED), "How frozen parameters are stored.")
WAYS = flags.DEFINE_list("ways", list(frozen_memory.WAYS), "Ways to train.")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU topology; this machine's first device by default.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for frozen_memory.json and .md.", required=True)


def main() -> None:
    sizes = frozen_memory.Sizes(**{name: flag.value for name, flag in SIZES.items()})
    device = devices(TOPOLOGY.value)[0]
    Console(width=200).print(
        frozen_memory.table(frozen_memory.run(sizes, STORED.value, WAYS.value, device, WORKDIR.value))
    )


if __name__ == "__main__":
    launch.run(main)

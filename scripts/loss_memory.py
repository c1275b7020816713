"""Memory that the contrastive losses need on each device, dense and chunked, as compiled: nothing is run.

    python scripts/loss_memory.py --topology=v5e:4x4 --batch_size=32768
    JAX_NUM_CPU_DEVICES=8 python scripts/loss_memory.py --batch_size=4096

A TPU's needs no TPU, but its compiler: pip install "vitvlm[aot]".
"""

from absl import flags
from rich.console import Console

from vitvlm.jobs import launch
from vitvlm.jobs.benchmarks import loss_memory

TOPOLOGY = flags.DEFINE_string("topology", None, "TPU topology; the devices of this machine by default.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32_768, "Pairs in the global batch.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 768, "Numbers in an embedding.", lower_bound=1)
BLOCKS = flags.DEFINE_list("blocks", ["256"], "Rows of logits that a device holds at a time.")


def main() -> None:
    where = loss_memory.devices(TOPOLOGY.value)
    found = loss_memory.measure(where, BATCH_SIZE.value, WIDTH.value, [int(block) for block in BLOCKS.value])
    title = f"B = {BATCH_SIZE.value:,}, D = {WIDTH.value}, {len(where)} x {where[0].device_kind}"
    Console().print(loss_memory.table(found, title))


if __name__ == "__main__":
    launch.run(main)
